"""config/single-gpu-shapes.yaml: real shapes on random tokens and weights, within one GPU's memory, and no score."""

import copy
import csv
import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from effllm.assembly.assemble import assemble
from effllm.errors import UserError
from effllm.models import costs
from effllm.models.families import model_config
from effllm.runtime.artifact import MANIFEST
from effllm.runtime.stage import Job
from effllm.stages.graph import Graph
from effllm.study import load_study, parse_study
from effllm.study.inheritance import read_study
from effllm.training import pretrain
from effllm.training.settings import PretrainingRun
from tests.conftest import REPOSITORY
from tests.unit.conftest import Builder

STUDY = REPOSITORY / "config" / "single-gpu-shapes.yaml"
# The smaller of the two cards, less what its driver and CUDA's context take.
DEVICE_BYTES = 80e9
LOADED = load_study(STUDY)


@pytest.fixture
def plain() -> dict[str, Any]:
    """The study, to change."""
    return json.loads(json.dumps(read_study(STUDY)))


def shrunk(study: dict[str, Any]) -> dict[str, Any]:
    """The same nodes at the size of a test."""
    study = copy.deepcopy(study)
    study["tokens"]["random"].update(vocab_size=64, tokens=4000)
    for run in study["pretraining"].values():
        _shrink(run["architecture"])
        run.update(sequence_length=16, max_steps=5, log_every_steps=5)
    for model in study["models"].values():
        _shrink(model["source"]["architecture"])
    study["instructions"]["random"]["source"].update(vocab_size=64, samples=80, prompt_tokens=4, answer_tokens=4)
    study["finetuning"]["random"].update(max_steps=5, log_every_steps=5, encoding={"sequence_length": 8})
    suite = study["finetuning"]["random"]
    suite["methods"] = [method for method in suite["methods"] if method not in ("freeze", "full-offload")]
    del suite["micro_batch_size_by_method"], suite["parallel_by_method"]
    for method in study["methods"].values():
        method.update({"rank": 4} if "rank" in method else {})
    study["precisions"]["int4"].update(group_size=-1, kernel="auto")
    study["precisions"]["int4"]["calibration"].update(samples=8, sequence_length=32)
    study["inference"].update(idle_s=0.1, minimum_window_s=0.05, repeats=2, cooldown_s=0.0, warmup_maximum=3)
    study["inference"]["maximum_relative_interval"] = 1000
    for workload in study["inference"]["workloads"].values():
        workload.update(prompt_tokens=8, new_tokens=4)
    # A processor has no CUDA graphs: that workload is unsupported there.
    study["tables"]["table9"]["workload"] = "generate"
    return study


def _shrink(shape: dict[str, Any]) -> None:
    smaller = {"hidden_size": 32, "num_hidden_layers": 1, "vocab_size": 64, "intermediate_size": 48}
    smaller |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    shape.update({key: value for key, value in smaller.items() if key in shape})


def training_bytes(run: PretrainingRun) -> float:
    """Weights, gradients and Adam's moments in float32, autocast's copies, activations and the loss."""
    config = model_config(run.architecture, run.architecture.vocab_size)
    parameters = costs.parameter_count(config).total
    activations = costs.activation_bytes(
        config, run.micro_batch_size, run.sequence_length, torch.bfloat16, run.activation_checkpointing
    )
    logits = run.micro_batch_size * run.sequence_length * config.vocab_size
    # The decoder's loss holds logits and gradient in bfloat16; Transformers' own holds float32 copies of the logits: as
    # they are, cast by Accelerate, their log-probabilities and their gradient.
    loss = 2 * logits if run.architecture.model_type == "effllm" else 4 * 4 * logits
    return (4 + 4 + 8 + 2) * parameters + activations + loss


@pytest.mark.parametrize("id", list(LOADED.pretraining))
def test_every_run_fits_into_eighty_gigabytes(id: str) -> None:
    assert training_bytes(LOADED.pretraining[id]) < DEVICE_BYTES


@pytest.mark.parametrize("id", list(LOADED.models))
def test_every_model_fits_with_its_cache(id: str) -> None:
    shape = LOADED.models[id].source.architecture
    config = model_config(shape, shape.vocab_size)
    context = {workload.prompt_tokens + workload.new_tokens for workload in LOADED.inference.workloads.values()}
    batch = max(workload.batch_size for workload in LOADED.inference.workloads.values())
    cache = batch * costs.cache_bytes(config, max(context), torch.bfloat16)
    # The weights are drawn in float32 and cast.
    assert 1.5 * costs.weight_bytes(config, torch.float32) + cache < DEVICE_BYTES


def test_the_plan_names_nodes_of_the_study_and_every_row_of_its_tables(repository: Path) -> None:
    graph = Graph(LOADED)
    plan = yaml.safe_load((repository / "benchmarks" / "device_plan.yaml").read_text())
    assert plan["study"] == "config/single-gpu-shapes.yaml"
    nodes = [(item["stage"], item["id"]) for item in plan["items"] if "stage" in item]
    assert all(id in graph.ids(stage) for stage, id in nodes)
    for item in plan["items"]:
        assert item["expected_s"] < item["limit_s"]
        assert "stage" in item or (repository / "benchmarks" / item["script"]).exists()
    rows = {("pretrain", run) for name in ("table3", "table4", "table5", "table6") for run in _runs(graph, name)}
    rows |= {("finetune", node) for node in LOADED.finetuning["random"].nodes("random")}
    rows |= {("profile", f"{m}.{p}") for m in LOADED.tables.table9.models for p in LOADED.tables.table9.precisions}
    assert rows == set(nodes)


@pytest.mark.parametrize("devices", [(2,), (2, 4, 8)])
def test_runs_over_several_gpus_differ_from_their_counterpart_in_nothing_but_the_strategy(
    repository: Path, monkeypatch: pytest.MonkeyPatch, devices: tuple[int, ...]
) -> None:
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    scaling = importlib.import_module("scaling")
    rows = scaling.rows(devices)
    runs = parse_study(scaling.study_of(rows, 9, False), "scaling").pretraining
    for row in rows:
        run = runs[row.name]
        assert (run.parallel.strategy, run.parallel.world_size) == (row.strategy, row.devices)
        if row.reference:
            alone = [runs[name].model_dump(exclude={"parallel"}) for name in (row.name, row.reference)]
            assert alone[0] == alone[1]
    assert {row.devices for row in rows} == {1, *devices}


def _runs(graph: Graph, name: str) -> list[str]:
    return [Path(path).parent.name for path in graph.table_parents(name)["pretrain"]]


def test_what_is_measured_on_random_tokens_and_weights_has_no_score(plain: dict[str, Any], tmp_path: Path) -> None:
    builder = Builder(shrunk(plain), tmp_path)
    run = builder.build("pretrain", "gqa-1.5b")
    training = run.json("training.json")
    assert {key for key in training if training[key] is None} == set(training["reasons"])
    assert set(training["reasons"].values()) == {"random tokens"}
    assert not (run.directory / "model").exists()
    assert run.json("records/efficiency.json")["latency_s_per_iteration"] > 0

    study = shrunk(plain)
    study["tables"] = {"table9": {**study["tables"]["table9"], "models": ["qwen2.5-1.5b"], "precisions": ["bfloat16"]}}
    builder = Builder(study, tmp_path)
    for stage in ("quantize", "profile"):
        builder.build(stage, "qwen2.5-1.5b.bfloat16")
    (row,) = assemble("table9", builder.graph.table_spec("table9"), builder.graph.table_parents("table9")).to_dicts()
    assert row["status"] == "ok"
    assert row["IT_tokens_per_s"] > 0
    assert row["average_performance"] is row["AL_sum_ms"] is row["MCR"] is None
    assert "average_performance, AL_sum_ms, MCR" in row["not_measured"].split(": random weights")[0]


def test_ranks_write_down_no_weights_that_nobody_keeps(plain: dict[str, Any], tmp_path: Path) -> None:
    builder = Builder(shrunk(plain), tmp_path)
    spec = builder.graph.spec("pretrain", "gqa-1.5b")
    spec["config"]["parallel"].update(strategy="ddp", devices=2)
    inputs = {"tokens": builder.build("tokens", "random")}
    paths = {name: tmp_path / name for name in ("output", "records", "scratch")}
    job = Job("pretrain", "effllm.training.pretrain", "gqa-1.5b", spec, inputs, {}, **paths)
    setup = pretrain.setup(job)
    assert not setup.keeps_weights and setup.model.device.type == "cpu"
    loaded = pretrain.load(job, tmp_path / "nothing")
    assert loaded.device.type == "meta" and loaded.config.to_dict() == setup.model.config.to_dict()


@pytest.mark.slow
def test_random_weights_are_quantized_on_random_tokens(plain: dict[str, Any], tmp_path: Path) -> None:
    study = shrunk(plain)
    study["precisions"]["int4"]["group_size"] = 32
    study["models"]["qwen2.5-1.5b"]["source"]["architecture"].update(hidden_size=64, intermediate_size=64)
    study["tables"] = {"table9": {**study["tables"]["table9"], "models": ["qwen2.5-1.5b"]}}
    builder = Builder(study, tmp_path)
    assert set(builder.graph.parents("quantize", "qwen2.5-1.5b.int4")) == {"model", "tokens"}
    for precision in study["precisions"]:
        for stage in ("quantize", "profile"):
            artifact = builder.build(stage, f"qwen2.5-1.5b.{precision}")
            assert artifact.manifest.status == "ok", artifact.manifest.reason
    checkpoint = builder.build("quantize", "qwen2.5-1.5b.int4").directory / "model"
    assert not list(checkpoint.glob("tokenizer*")), "random weights have no tokenizer"
    rows = assemble("table9", builder.graph.table_spec("table9"), builder.graph.table_parents("table9")).to_dicts()
    assert [row["kernel"] for row in rows] == [None, None, "TorchAtenLinear"]
    assert rows[-1]["calibration"] == "8 x 32 random tokens"
    assert rows[-1]["average_performance"] is None
    assert rows[-1]["IT_tokens_per_s"] > 0


def test_a_row_of_table_3_says_that_its_tokens_were_random(plain: dict[str, Any], tmp_path: Path) -> None:
    study = shrunk(plain)
    study["tables"] = {"table3": {"rows": [{"method": "NSA", "parameters": "1.5B", "runs": ["nsa-1.5b"]}]}}
    builder = Builder(study, tmp_path)
    builder.build("pretrain", "nsa-1.5b")
    (row,) = assemble("table3", builder.graph.table_spec("table3"), builder.graph.table_parents("table3")).to_dicts()
    assert row["PPL"] is None
    assert row["AL_s_per_iter"] > 0
    assert "PPL" in row["not_measured"].split(": random tokens")[0].split(" | ")[-1]


@pytest.mark.parametrize("method", ["pissa", "full"])
def test_fine_tuning_on_random_tokens_measures_and_keeps_nothing(
    plain: dict[str, Any], tmp_path: Path, method: str
) -> None:
    study = shrunk(plain)
    study["finetuning"]["random"]["methods"] = [method]
    study["tables"] = {"table7": {"suite": "random"}}
    builder = Builder(study, tmp_path)
    artifact = builder.build("finetune", f"llama-3.2-1b.random.{method}")
    assert set(artifact.manifest.payload) == {"training.json"}
    (row,) = assemble("table7", builder.graph.table_spec("table7"), builder.graph.table_parents("table7")).to_dicts()
    assert row["loss"] is row["held_out_loss"] is None
    assert "loss, held_out_loss" in row["not_measured"].replace("PCU, ", "")
    assert "random tokens" in row["not_measured"]
    assert row["AL_s_per_iter"] > 0
    assert (row["adapter_bytes"] is None) == (method == "full")
    assert row["parameters_trainable"] > 0


def test_an_evaluation_of_random_weights_is_unsupported(
    plain: dict[str, Any], tiny: dict[str, Any], tmp_path: Path
) -> None:
    study = shrunk(plain)
    study["corpora"] = tiny["corpora"]
    study["benchmarks"] = {"adjacent-swap": {**tiny["benchmarks"]["adjacent-swap"], "items": 5}}
    artifact = Builder(study, tmp_path).build("evaluate", "qwen2.5-1.5b.bfloat16.adjacent-swap")
    assert (artifact.manifest.status, artifact.manifest.reason) == ("unsupported", "random weights")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s["models"].update(x={"source": {"kind": "pretrained", "run": "gqa-1.5b"}}),
            "models.x.source.run: 'gqa-1.5b' trains on the random tokens of 'random' and keeps no weights",
        ),
        (
            lambda s: s["models"]["qwen2.5-7b"]["source"]["architecture"].pop("vocab_size"),
            "architecture.vocab_size is missing",
        ),
        (
            lambda s: (
                s.update(corpora={"c": {"source": {"kind": "embedded"}, "held_out_fraction": 0.1}}),
                s.update(benchmarks={"b": {"kind": "held_out", "corpus": "c", "task": "word_order", "items": 1}}),
                s["tables"]["table9"].update(benchmarks=["b"]),
            ),
            "tables.table9.benchmarks: a score of 'qwen2.5-1.5b', which has random weights, means nothing",
        ),
        (
            lambda s: s["tokens"].update(random={"kind": "synthetic", "vocab_size": 1, "tokens": 5}),
            "tokens.random.vocab_size",
        ),
        (lambda s: s["tokens"].update(random={"kind": "sythetic"}), "did you mean 'synthetic'"),
        (
            lambda s: s["models"].update(
                x={"source": {"kind": "finetuned", "suite": "random", "model": "llama-3.2-1b", "method": "full"}}
            ),
            "models.x.source.suite: 'random' trains on the random tokens of 'random' and keeps no weights",
        ),
        (
            lambda s: s["instructions"].update(
                random={"source": {"kind": "embedded", "questions": "name"}, "held_out_fraction": 0.1}
            ),
            "finetuning.random.models: 'llama-3.2-1b' has random weights and no tokenizer",
        ),
        (
            lambda s: s["instructions"].update(random={"source": {"kind": "embedded", "questions": "name"}}),
            "held_out_fraction is missing",
        ),
        (
            lambda s: s["precisions"]["int4"]["calibration"].update(corpus="c"),
            "precisions.int4.calibration: name either corpus, for text, or tokens, a synthetic stream for models of "
            "random weights, not both ('c' and 'random')",
        ),
        (
            lambda s: s["precisions"]["int4"]["calibration"].pop("tokens"),
            "precisions.int4.calibration: name either corpus, for text, or tokens, a synthetic stream for models of "
            "random weights, not neither",
        ),
        (
            lambda s: s["precisions"]["int4"]["calibration"].update(tokens="randon"),
            "precisions.int4.calibration.tokens: 'randon' does not exist; did you mean 'random'?",
        ),
        (
            lambda s: s["precisions"]["int4"]["calibration"].update(samples=4000),
            "precisions.int4.calibration.samples: 'random' has 4000000 tokens, 4000 sequences of 1024 take 4096000",
        ),
        (
            lambda s: s["tokens"]["random"].update(vocab_size=152064),
            "precisions.int4.calibration.tokens: 'random' has 152064 ids, 'qwen2.5-1.5b' has 151936",
        ),
        (
            lambda s: (
                s.update(corpora={"c": {"source": {"kind": "embedded"}, "held_out_fraction": 0.1}}),
                s["precisions"]["int4"].update(calibration={"corpus": "c", "samples": 1, "sequence_length": 8}),
            ),
            "precisions.int4.calibration.corpus: 'qwen2.5-1.5b' has random weights and no tokenizer to read 'c' with",
        ),
        (
            lambda s: s["models"]["qwen2.5-1.5b"].update(source={"kind": "local", "path": "/nowhere"}),
            "precisions.int4.calibration.tokens: 'qwen2.5-1.5b' is a trained model, which random tokens calibrate",
        ),
    ],
)
def test_mistakes_are_answered_in_one_sentence(plain: dict[str, Any], change: Any, message: str) -> None:
    change(plain)
    with pytest.raises(UserError) as caught:
        parse_study(plain, "test")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def _script(name: str) -> Any:
    """A script of benchmarks/ as a module."""
    specification = importlib.util.spec_from_file_location(name, REPOSITORY / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def device() -> Any:
    return _script("device")


@pytest.mark.parametrize("forks", [True, False])
def test_the_driver_goes_on_after_failures_and_resumes(
    device: Any, plain: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forks: bool
) -> None:
    # The driver sets up the environment that its children inherit.
    monkeypatch.setattr(os, "environ", os.environ.copy())
    if not forks:
        monkeypatch.setattr(device, "_try_cuda", lambda: sys.exit(1))
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(shrunk(plain)))
    scripts = {"fails": "raise SystemExit('broken')", "sleeps": "import time; time.sleep(60)"}
    for name, text in scripts.items():
        (tmp_path / f"{name}.py").write_text(text)
    plan = [
        device.Item(script=str(tmp_path / "fails.py"), name="fails", expected_s=1, limit_s=30),
        device.Item(script=str(tmp_path / "sleeps.py"), name="sleeps", expected_s=0, limit_s=0.3),
        device.Item(stage="tokens", id="random", expected_s=1, limit_s=60),
        device.Item(stage="pretrain", id="gqa-1.5b", expected_s=1000, limit_s=2000),
    ]
    results, export = tmp_path / "results", tmp_path / "out" / "results.tar.gz"
    device.Run(tmp_path / "study.yaml", plan, results, 100, export).all(("",))
    record = json.loads((results / "device.json").read_text())
    assert {key: outcome["status"] for key, outcome in record.items()} == {
        "script/fails": "failed",
        "script/sleeps": "timeout",
        "tokens/random": "done",
    }
    assert "broken" in record["script/fails"]["reason"]
    assert (results / "tokens" / "random" / MANIFEST).exists()
    assert export.exists()
    before = (results / "device.json").stat().st_mtime_ns
    device.Run(tmp_path / "study.yaml", plan, results, 100, export).all(("",))
    assert (results / "device.json").stat().st_mtime_ns == before, "nothing was done again"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "device.json").write_text(json.dumps({"pretrain/none-1.5b": {"status": "failed", "reason": "broken"}}))
    _script("device_tables").write_tables(tmp_path / "study.yaml", [results, elsewhere], tmp_path / "tables")
    rows = list(csv.DictReader((tmp_path / "tables" / "table4.csv").read_text().splitlines()))
    assert {row["status"] for row in rows} == {"timeout"}
    reasons = {row["method"]: row["reason"] for row in rows}
    assert "not measured: broken" in reasons["None"]
    assert "before its turn" in reasons["Relative"]
