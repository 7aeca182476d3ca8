"""The table of requests in docs/cluster.md is what jobs ask for."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from effllm.cluster.requests import request
from effllm.models.costs import forward_flops, parameter_count, training_flops
from effllm.models.costs.shapes import shape_of
from effllm.models.dit import costs as dit
from effllm.stages import STAGES
from effllm.study import Study, load_study, parse_study
from tests.conftest import REPOSITORY
from tests.unit.cluster.manifests import imported, manifest, variant

PAPER = load_study(REPOSITORY / "config" / "paper.yaml")
CORES, GIGABYTES, BITS = 8, 33.0, 4


@dataclass(frozen=True)
class Case:
    """A job, and the terms of the formulas that belong to it."""

    study: Study
    id: str
    inputs: dict[str, str]
    terms: dict[str, float]


def rows() -> dict[str, list[str]]:
    """The cells of the table by the name of the row."""
    _, _, after = (REPOSITORY / "docs" / "cluster.md").read_text().partition("| stage | nodes |")
    table = after.partition("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    return {name: rest for name, *rest in cells}


def _pretrain(tiny: dict[str, Any], offload: bool) -> Case:
    tiny["pretraining"]["llama-1m"] |= {
        "dtype": "bfloat16",
        "max_steps": 10**9,
        "global_batch_size": 32,
        "parallel": {"strategy": "zero2", "devices": 4, "nodes": 2, "offload": offload},
    }
    study = parse_study(tiny, "test")
    run = study.pretraining["llama-1m"]
    shape = shape_of(run.architecture, study.tokenizers["python-docs-2k"].vocab_size)
    flops = run.max_steps * run.global_batch_size * training_flops(shape, run.sequence_length)
    terms = {"nodes": 2, "devices": 4, "parameters": parameter_count(shape).total / 1e9}
    return Case(study, "llama-1m", {}, terms | {"training": flops / (8 * 200e12) / 60})


def _diffuse(tiny: dict[str, Any]) -> Case:
    shape = {"model_type": "dit", "image_size": 8, "channels": 1, "patch_size": 2, "classes": 10, "hidden_size": 512}
    tiny["diffusion"] |= {
        "dit": {
            "images": "digits",
            "architecture": shape | {"num_hidden_layers": 12, "num_attention_heads": 8},
            "objective": {"kind": "ddpm"},
            "global_batch_size": 8,
            "micro_batch_size": 1,
            "max_steps": 10**7,
            "optimizer": {"learning_rate": 1e-4, "minimum_learning_rate": 1e-4, "warmup_steps": 0},
            "parallel": {"strategy": "ddp", "devices": 4, "nodes": 2},
            "checkpoint_every_steps": 100,
        }
    }
    study = parse_study(tiny, "test")
    run = study.diffusion["dit"]
    flops = run.max_steps * run.global_batch_size * dit.training_flops(run.architecture.shape())
    parameters = dit.parameter_count(run.architecture.shape()).total / 1e9
    terms = {"nodes": 2, "devices": 4, "parameters": parameters, "training": flops / (8 * 200e12) / 60}
    return Case(study, "dit", {}, terms)


def _sampled(tiny: dict[str, Any], root: Path) -> tuple[Case, Case]:
    """Samples of `_diffuse`'s run, and their fidelity."""
    study = _diffuse(tiny).study
    keys = study.model_dump(mode="json")["diffusion"]
    tiny["tables"] = {}
    tiny["diffusion"] = keys
    tiny["sampling"] = {
        "many": {
            "runs": ["dit"],
            "sampler": {"kind": "ddim", "steps": 250, "guidance": 4.0},
            "images": 5_000_000,
            "seeds": [0, 1],
            "batch_size": 64,
            "dtype": "bfloat16",
        }
    }
    tiny["features"] = {"small": {"kind": "trained", "images": "digits", "width": 512}}
    tiny["fidelity"] = {"near": {"sampling": "many", "features": "small"}}
    study = parse_study(tiny, "test")
    shape = study.diffusion["dit"].architecture.shape()
    flops = 2 * 5_000_000 * 500 * dit.forward_flops(shape)
    terms = {"parameters": dit.parameter_count(shape).total / 1e9, "images": 5_000_000 * 64 / 1e9}
    sampled = Case(study, "dit.many", {}, terms | {"sampling": flops / 200e12 / 60, "idle": 5 / 60})
    images = manifest(root / "digits", "images", {}, {})
    summary = {"seen": 9_000_000, "dropped": {}, "unusable": [], "classes": [], "size": 8, "channels": 1}
    (root / "digits" / "images.json").write_text(json.dumps(summary | {"splits": {"train": 8_000_000, "held_out": 1}}))
    features = 13_000_000 * 512 * 8 / 1e9
    return sampled, Case(study, "dit.near", {"images": images}, {"features": features, "seeds": 2})


def _latents(tiny: dict[str, Any], root: Path) -> Case:
    tiny["autoencoders"] = {"vae": {"kind": "local", "path": "vae"}}
    tiny["latents"] = {"half": {"images": "digits", "autoencoder": "vae", "mirrored": True}}
    images = manifest(root / "pictures", "images", {}, {})
    summary = {"seen": 9, "dropped": {}, "unusable": [], "classes": [], "size": 256, "channels": 3}
    (root / "pictures" / "images.json").write_text(
        json.dumps(summary | {"splits": {"train": 1_200_000, "held_out": 9}})
    )
    encoding = 2 * 1_200_009 * 256**2 * 4.2e6 / 60e12 / 60
    return Case(parse_study(tiny, "test"), "half", {"images": images}, {"encoding": encoding})


def _tuned(tiny: dict[str, Any], root: Path) -> tuple[Case, Case]:
    """The encoding of many captions, and a suite on them."""
    tiny["tuning"]["drawings"]["max_steps"] = 10**6
    study = parse_study(tiny, "test")
    captions, encodings = manifest(root / "captions", "captions", {}, {}), manifest(root / "codes", "encode", {}, {})
    summary = {"seen": 9, "dropped": {}, "unusable": [], "shapes": {}, "frames": 1}
    splits = {"splits": {"train": 500_000, "held_out": 4}}
    (root / "captions" / "captions.json").write_text(json.dumps(summary | splits))
    (root / "codes" / "encodings.json").write_text(
        json.dumps({"texts": 9, "text_shapes": {}, "family": "sd3"} | splits)
    )
    generator = manifest(root / "pipeline", "generator", {}, {})
    parts = {"family": "sd3", "parameters": {"transformer": 2 * 10**9}, "side_step": 16, "frame_step": 1, "source": {}}
    (root / "pipeline" / "generator.json").write_text(json.dumps(parts))
    suite = study.tuning["drawings"]
    training = 6 * 2e9 * suite.max_steps * suite.samples_per_step * 16_384 / 60e12 / 60
    terms = {"nodes": 1, "devices": 1, "parameters": 2, "training": training}
    inputs = {"generator": generator, "encodings": encodings}
    encoded = Case(study, "sd3-0.5m.drawings", {"captions": captions}, {"samples": 500_004})
    return encoded, Case(study, "sd3-0.5m.drawings.image-lora", inputs, terms)


def _orders(tiny: dict[str, Any], root: Path) -> tuple[Case, Case]:
    """By a measure of texts, and by the loss of a run."""
    tiny["orders"]["loss"] = tiny["orders"]["compression"] | {"by": {"kind": "loss", "run": "gqa-0.3m"}}
    study = parse_study(tiny, "test")
    files = {"train.bin": 2 * 10**15, "train.boundaries.bin": 5 * 10**9, "held_out.boundaries.bin": 10**9}
    inputs = {"tokens": manifest(root / "tokens", "tokens", {}, files)}
    corpus = {"corpus": manifest(root / "measured", "corpus", {}, {"part.parquet": 10**12})}
    by_text = Case(study, "compression", inputs | corpus, {"text": 10**12 / (1e6 * CORES) / 60, "boundaries": 6})
    shape = shape_of(study.pretraining["gqa-0.3m"].architecture, study.tokenizers["python-docs-2k"].vocab_size)
    reading = 10**15 // 128 * forward_flops(shape, 128) / 60e12 / 60
    terms = {"parameters": parameter_count(shape).total / 1e9, "reading": reading}
    return by_text, Case(study, "loss", inputs, terms)


def _finetune(root: Path, method: str) -> Case:
    suite = PAPER.tables.table7.suite
    id = f"{PAPER.finetuning[suite].models[0]}.{suite}.{method}"
    root /= method
    instructions = manifest(root / "instructions", "instructions", {}, {})
    counts = {"splits": {"train": {"samples": 50_000, "answers": 1, "answer_utf8_bytes": 1}}}
    (root / "instructions" / "instructions.json").write_text(json.dumps(counts))
    run = STAGES["finetune"].config(PAPER, id)
    tokens = run.steps(50_000) * run.samples_per_step * run.encoding.sequence_length
    parameters = GIGABYTES / 2
    training = 6 * parameters * 1e9 * tokens / (run.parallel.world_size * 200e12) / 60
    terms = {"nodes": run.parallel.nodes, "devices": run.parallel.devices, "parameters": parameters}
    inputs = {"model": imported(root, GIGABYTES, "bfloat16"), "instructions": instructions}
    return Case(PAPER, id, inputs, terms | {"training": training})


def _served(tiny: dict[str, Any], inputs: dict[str, str], terms: dict[str, float]) -> Case:
    fixed = {"kind": "fixed", "tokens": 8}
    tiny["serving"]["short"] = {
        "engine": {"kind": "transformers", "num_blocks": 8, "max_batch_tokens": 64},
        "load": {"arrivals": {"kind": "poisson"}, "prompt_tokens": fixed, "output_tokens": fixed},
        "saturation": {"concurrency": 2, "maximum_concurrency": 4},
        "fractions": [0.5, 0.75, 0.9],
    }
    return Case(parse_study(tiny, "test"), "llama-1m.int4.short", inputs, terms | {"loads": 4})


@pytest.fixture
def cases(tmp_path: Path, tiny: dict[str, Any]) -> dict[str, Case]:
    """A case for each row."""
    text = manifest(tmp_path / "text", "corpus", {}, {"part.parquet": 10**12})
    base = {"model": imported(tmp_path, GIGABYTES, "float32")}
    whole = {"weights": GIGABYTES, "weights_16": GIGABYTES / 2}
    packed = {"model": variant(tmp_path, GIGABYTES, BITS)}
    terms = {"weights": GIGABYTES, "weights_16": GIGABYTES * 16 / BITS}
    protocol = PAPER.inference
    by_text, by_loss = _orders(json.loads(json.dumps(tiny)), tmp_path)
    encoded, tuned = _tuned(json.loads(json.dumps(tiny)), tmp_path)
    sampled, compared = _sampled(json.loads(json.dumps(tiny)), tmp_path)
    windows = 2 * len(protocol.workloads) * protocol.repeats
    seconds = windows * (protocol.minimum_window_s + protocol.cooldown_s) + protocol.idle_s
    return {
        "tokens": Case(PAPER, next(iter(PAPER.tokens)), {"corpus": text}, {"text": 10**12 / (1e6 * CORES) / 60}),
        "order, text": by_text,
        "order, loss": by_loss,
        "pretrain": _pretrain(json.loads(json.dumps(tiny)), offload=False),
        "pretrain, offloaded": _pretrain(tiny, offload=True),
        "latents": _latents(json.loads(json.dumps(tiny)), tmp_path),
        "diffuse": _diffuse(json.loads(json.dumps(tiny))),
        "sample": sampled,
        "fidelity": compared,
        "encode": encoded,
        "tune": tuned,
        "finetune, adapter in bfloat16": _finetune(tmp_path, "lora"),
        "finetune, whole model": _finetune(tmp_path, "full"),
        "merge": Case(PAPER, "a.b.c", base, whole),
        "quantize, cast": Case(PAPER, "qwen2.5-7b.bfloat16", base, whole),
        "quantize, gptq": Case(PAPER, "qwen2.5-7b.int4", base, whole),
        "evaluate": Case(PAPER, "qwen2.5-7b.int4.bbh", packed, terms),
        "overlap": Case(PAPER, "musr.text", {"corpus": text}, {"compared": 10**12 / 1e7 / 60}),
        "profile": Case(PAPER, "qwen2.5-7b.int4", packed, terms | {"protocol": seconds / 60}),
        "serve": _served(json.loads(json.dumps(tiny)), packed, terms),
    }


def test_every_row_is_what_its_job_asks_for(cases: dict[str, Case]) -> None:
    assert cases.keys() == rows().keys()
    for name, (nodes, gpus, memory_gb, minutes) in rows().items():
        case = cases[name]

        def value(cell: str, terms: dict[str, float] = case.terms) -> float:
            return eval(cell.split("`")[1], {}, terms)

        asked = request(case.study, name.partition(",")[0], case.id, case.inputs, CORES)
        assert (asked.nodes, asked.gpus_per_node) == (value(nodes), value(gpus)), name
        assert asked.memory_mb == 1000 * math.ceil(int(1000 * value(memory_gb)) / 1000), name
        assert asked.minutes == 10 * math.ceil(int(value(minutes)) / 10), name
        assert ("--exclusive" in asked.options) == ("whole" in nodes or asked.nodes > 1), name


def test_every_stage_that_is_a_job_has_a_row() -> None:
    jobs = {name for name, stage in STAGES.items() if not stage.network}
    assert {name.partition(",")[0] for name in rows()} == jobs
