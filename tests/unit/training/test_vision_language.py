"""Fine-tuning of a vision-language model through the stages: from random weights to a merged model that generates."""

import copy
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

from effllm.errors import UserError
from effllm.runtime.artifact import Artifact
from effllm.study import parse_study
from effllm.tables.columns.quantization import QUANTIZATION
from effllm.tables.finetuning import finetuning_table
from effllm.tables.quantization import table9
from effllm.training.answer_loss import AnswerLoss
from effllm.training.images import image_figures
from tests.unit.conftest import Builder

BASE, TUNED = "llava-random.read-digits.full", "llava-0.2m.digit-parity.lora"

OTHERS = ("qwen2_5_vl", "internvl")


@pytest.fixture(scope="module")
def study(tiny_text: dict[str, Any]) -> dict[str, Any]:
    """The embedded study's Table 12 alone, of a few steps."""
    study = json.loads(json.dumps(tiny_text))
    empty = (
        "orders",
        "images",
        "pretraining",
        "diffusion",
        "sampling",
        "features",
        "fidelity",
        "budgets",
    )
    study |= {section: {} for section in empty}
    study["evaluation"].pop("divergence_from")
    study["tables"] = {"table12": study["tables"]["table12"]}
    study["finetuning"] = {id: study["finetuning"][id] for id in ("read-digits", "digit-parity")}
    study["models"] = {id: study["models"][id] for id in ("llava-random", "llava-0.2m")}
    study["models"]["tuned"] = {
        "source": {"kind": "finetuned", "suite": "digit-parity", "model": "llava-0.2m", "method": "lora"}
    }
    # Sentences of the benchmark are longer than questions.
    study["models"]["llava-random"]["source"]["architecture"]["max_position_embeddings"] = 512
    for family in OTHERS:
        other = copy.deepcopy(study["models"]["llava-random"])
        other["source"]["architecture"]["model_type"] = family
        tuned = {"kind": "finetuned", "suite": "read-digits", "model": f"{family}-random", "method": "full"}
        study["models"] |= {f"{family}-random": other, family: {"source": tuned}}
        study["finetuning"]["read-digits"]["models"].append(f"{family}-random")
        study["finetuning"]["digit-parity"]["models"].append(family)
    study["benchmarks"] = {
        "word-order": {"kind": "held_out", "corpus": "python-docs", "task": "word_order", "items": 4}
    }
    short = {"prompt_tokens": 8, "new_tokens": 2}
    study["inference"] |= {
        "workloads": {"text": short, "image": short | {"images": 2, "image_size": 8}},
        "idle_s": 0.1,
        "warmup_maximum": 3,
        "repeats": 2,
        "minimum_window_s": 0.05,
        "cooldown_s": 0.0,
        "maximum_relative_interval": 9.0,
    }
    study["precisions"] = {"bfloat16": study["precisions"]["bfloat16"]}
    study["instructions"] = {id: study["instructions"][id] for id in ("which-digit", "digit-parity")}
    for instructions in study["instructions"].values():
        instructions["maximum_samples"] = 100
    shared = {"max_steps": 4, "log_every_steps": 2, "checkpoint_every_steps": 2, "held_out_samples": 16}
    study["finetuning"]["read-digits"].update(shared)
    study["finetuning"]["digit-parity"].update(shared, methods=["lora", "freeze"], parallel_by_method={})
    study["methods"]["freeze"]["frozen_layers"] = 1
    return study


@pytest.fixture(scope="module")
def built(study: dict[str, Any], builder: Builder) -> Builder:
    """Beside what other tests have built, whose corpus it takes."""
    return Builder(study, Path(builder.graph.results).parent)


@pytest.fixture(scope="module")
def base(built: Builder) -> Artifact:
    return built.build("finetune", BASE)


@pytest.fixture(scope="module")
def tuned(built: Builder, base: Artifact) -> Artifact:
    return built.build("finetune", TUNED)


def _weights(artifact: Artifact) -> dict[str, torch.Tensor]:
    return load_file(artifact.directory / "model" / "model.safetensors")


def _changed(before: Artifact, after: Artifact) -> set[str]:
    old, new = _weights(before), _weights(after)
    assert old.keys() == new.keys()
    return {name for name in old if not torch.equal(old[name], new[name])}


def _is_vision(name: str) -> bool:
    return "vision_tower" in name or "projector" in name


def test_the_base_is_trained_whole_and_the_tuned_one_beside_its_eyes(built: Builder, base: Artifact) -> None:
    changed = _changed(built.build("model", "llava-random"), base)
    assert {_is_vision(name) for name in changed} == {True, False}
    frozen = built.build("finetune", "llava-0.2m.digit-parity.freeze")
    changed = _changed(base, frozen)
    assert changed and not any(_is_vision(name) or "layers.0." in name for name in changed)


def test_the_held_out_loss_is_scored_with_blank_images_too(tuned: Artifact) -> None:
    training = tuned.json("training.json")
    record = pq.read_table(tuned.directory / "records" / "held_out.parquet").to_pydict()
    tokens = sum(record["tokens"])
    for key, column in (("held_out_loss", "nll"), ("held_out_loss_blank", "nll_blank")):
        assert training[key] == pytest.approx(sum(record[column]) / tokens)
    assert training["image_gain"] == pytest.approx(training["held_out_loss_blank"] - training["held_out_loss"])
    assert training["image_gain_stderr"] > 0
    assert training["data"]["train"]["image_tokens"] == 16 * training["data"]["train"]["samples"]


def test_an_adapter_is_on_the_language_model_and_its_merged_model_generates(built: Builder, tuned: Artifact) -> None:
    adapter = load_file(tuned.directory / "adapter" / "adapter_model.safetensors")
    assert adapter and all(".language_model." in name for name in adapter)
    merged = built.build("merge", TUNED)
    directory = merged.directory / "model"
    changed = _changed(built.build("finetune", BASE), merged)
    assert len(changed) == 14 and not any(_is_vision(name) for name in changed)
    model = AutoModelForImageTextToText.from_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    pixels = AutoImageProcessor.from_pretrained(directory)(Image.new("RGB", (8, 8)), return_tensors="pt")
    text = "<image>" * 16 + "\n"
    ids = tokenizer(text + "Is this digit even or odd?", return_tensors="pt")["input_ids"]
    answer = model.generate(input_ids=ids, pixel_values=pixels["pixel_values"], max_new_tokens=3, do_sample=False)
    assert ids.shape[1] < answer.shape[1] <= ids.shape[1] + 3


def test_a_merged_model_is_quantized_scored_and_profiled_with_images(built: Builder, tuned: Artifact) -> None:
    quantized = built.build("quantize", "tuned.bfloat16")
    assert (quantized.directory / "model" / "preprocessor_config.json").is_file()
    assert quantized.json("quantization.json")["weights"]["quantized_layers"] == 0
    evaluated = built.build("evaluate", "tuned.bfloat16.word-order")
    assert evaluated.manifest.status == "ok", evaluated.manifest.reason
    scored = evaluated.json("evaluation.json")
    assert scored["items"] == 4 and scored["score"] is not None
    profile = built.build("profile", "tuned.bfloat16").json("profile.json")
    text, image = (profile["workloads"][id] for id in ("text", "image"))
    assert "vision" not in text and "vision" not in text["telemetry"]
    vision = image["vision"]
    assert (vision["images"], vision["image_tokens"]) == (2, 32)
    parts = vision["encode_ms_p50"] + vision["language_first_token_ms_p50"]
    assert parts == pytest.approx(image["figures"]["first_token_ms_p50"])
    assert image["telemetry"]["vision"]["windows"] == 2
    assert image["utilization"]["prefill_flops"] > text["utilization"]["prefill_flops"] > 0
    keys = {"models": ["tuned"], "precisions": ["bfloat16"], "benchmarks": [], "baseline": "bfloat16"}
    spec = {"config": keys | {"workload": "text"}, "corpora": {}, "model_labels": {"tuned": "Tuned"}}
    inputs = {stage: [built.graph.manifest(stage, "tuned.bfloat16")] for stage in ("quantize", "profile")}
    (row,) = table9(spec, inputs)
    assert row["image_vision_encode_ms_p50"] == pytest.approx(vision["encode_ms_p50"], rel=1e-4)
    assert row["image_image_tokens"] == 32
    assert "vision_encode_ms_p50" not in row
    (row,) = table9(spec | {"config": keys | {"workload": "image"}}, inputs)
    assert row["language_first_token_ms_p50"] == pytest.approx(vision["language_first_token_ms_p50"], rel=1e-4)
    assert "energy_J_per_image" in row["not_measured"] and not any(name.startswith("text_image") for name in row)
    told = QUANTIZATION.columns(list(row))
    assert told["energy_J_per_image"].role == told["vision_encode_ms_p50"].role == "cost"


def test_the_gain_is_of_the_same_samples_and_its_error_of_whole_images() -> None:
    # Two questions about each of three images: the gain a token is 4, 2 and 0 by image.
    ids = ["a", "a#2", "b", "b#2", "c", "c#2"]
    true = AnswerLoss(2.0, 0.1, 6, 6, [(id, 2.0, 1) for id in ids])
    blank = AnswerLoss(4.0, 0.1, 6, 6, [(id, 2.0 + gain, 1) for id, gain in zip(ids, (5, 3, 1, 3, 0, 0), strict=True)])
    figures = image_figures(true, blank)
    assert figures["image_gain"] == figures["held_out_loss_blank"] - 2.0 == 2.0
    # The standard error of the mean of 4, 2 and 0.
    assert figures["image_gain_stderr"] == pytest.approx(2 / 3**0.5)
    none = image_figures(true, true)
    assert (none["image_gain"], none["image_gain_stderr"]) == (0, 0)


@pytest.mark.parametrize("family", OTHERS)
def test_the_other_families_train_and_look(built: Builder, family: str) -> None:
    tuned = built.build("finetune", f"{family}.digit-parity.lora")
    adapter = load_file(tuned.directory / "adapter" / "adapter_model.safetensors")
    # Four projections of attention and three of the feed-forward in two layers, A and B of each.
    assert len(adapter) == 28 and all(".language_model." in name for name in adapter)
    training = tuned.json("training.json")
    assert training["held_out_loss"] < training["held_out_loss_before"]
    assert training["image_gain"] != 0
    assert training["data"]["train"]["image_tokens"] == 4 * training["data"]["train"]["samples"]


def test_the_table_says_whether_a_model_looks(built: Builder, tuned: Artifact) -> None:
    built.build("finetune", "llava-0.2m.digit-parity.freeze")
    graph = built.graph
    spec, parents = graph.table_spec("table12"), graph.table_parents("table12")
    spec["config"]["models"] = ["llava-0.2m"]
    parents["finetune"] = [path for path in parents["finetune"] if "llava-0.2m" in path]
    rows = finetuning_table(spec, parents, has_images=True)
    assert [row["method"] for row in rows] == ["LoRA", "Freeze"]
    for row in rows:
        assert row["looks"] == ("yes" if row["image_gain_low"] > 0 else "no")
        assert row["image_gain_low"] < row["image_gain"] < row["image_gain_high"]
        assert (row["image_tokens_per_sample"], row["vision_trained"], row["samples_dropped"]) == (16, "none", 0)
        assert "packing" not in row


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("finetuning/digit-parity/parallel_by_model", {"x": {}}, "parallel_by_model: 'x' is not among the suite's"),
        ("finetuning/digit-parity/encoding/packing", True, "finetuning.digit-parity.encoding.packing: samples with"),
        ("instructions/which-digit/source", {"kind": "embedded", "questions": "name"}, "has no images; leave the key"),
        ("instructions/digit-parity/source", {"kind": "embedded", "questions": "name"}, "tables.table12.suite:"),
        ("models/llava-random/source/tokenizer", "python-docs-3k", "models.llava-random.source.tokenizer: 'python"),
    ],
)
def test_bad_studies_are_refused(study: dict[str, Any], path: str, value: Any, expected: str) -> None:
    study = copy.deepcopy(study)
    *parents, last = path.split("/")
    section = study
    for key in parents:
        section = section[key]
    section[last] = value
    with pytest.raises(UserError, match=expected):
        parse_study(study, "study.yaml")
