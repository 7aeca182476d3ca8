"""Fine-tuning through the stage: fair, resumable, the same on several ranks, and reusable downstream."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from effllm.errors import UserError
from effllm.intervals import ratio_standard_error
from effllm.models.loading import load_causal_lm
from effllm.runtime.artifact import MANIFEST, Artifact
from effllm.runtime.stage import run
from effllm.stages import STAGES
from effllm.training.adapters import load_adapter
from effllm.training.consumed import sample_order
from tests.conftest import cut_down
from tests.programs import run_program
from tests.slowdown import Held
from tests.unit.conftest import Builder

METHODS = ("lora", "lora-plus", "rslora", "dora", "pissa", "freeze", "full")
# The same sums in another order, in float32, over twelve steps of AdamW.
TOLERANCE = 2e-4


def _id(method: str) -> str:
    return f"llama-1m.describe.{method}"


class Finetunes:
    """Fine-tuning nodes of the cut-down study with changes to their specs."""

    def __init__(self, builder: Any):
        self.builder = builder

    def inputs(self, method: str) -> dict[str, list[Path]]:
        """Manifests of the parents, built if need be."""
        parents = self.builder.graph.parents("finetune", _id(method))
        for path in map(Path, parents.values()):
            if not path.exists():
                self.builder.build(path.parts[-3], path.parts[-2])
        return {name: [Path(path)] for name, path in parents.items()}

    def spec(self, name: str, **changes: Any) -> dict[str, Any]:
        """The node's spec with keys of its configuration replaced."""
        spec = self.builder.graph.spec("finetune", _id(name))
        spec["config"] |= changes
        return spec

    def run(self, root: Path, name: str, **changes: Any) -> Artifact:
        """Run the stage in this process: `name` is the method's id."""
        build = importlib.import_module(STAGES["finetune"].module).build
        output = root / "results" / "finetune" / _id(name)
        return run(STAGES["finetune"], build, spec=self.spec(name, **changes), inputs=self.inputs(name), output=output)

    def command(self, root: Path, name: str, method: str, **changes: Any) -> tuple[list[str], Path]:
        """The stage as a program, and its output."""
        spec = root / f"{name}.json"
        spec.write_text(json.dumps(self.spec(method, **changes)))
        output = root / name / "finetune" / _id(method)
        argv = [sys.executable, "-m", STAGES["finetune"].module, "--spec", str(spec), "--output", str(output)]
        for parent, (path,) in self.inputs(method).items():
            argv += ["--input", f"{parent}={path}"]
        return argv, output


@pytest.fixture(scope="module")
def finetunes(builder: Any) -> Finetunes:
    return Finetunes(builder)


@pytest.fixture(scope="module")
def suite(builder: Any) -> dict[str, Artifact]:
    """Every method of the suite but the one that needs ranks."""
    return {method: builder.build("finetune", _id(method)) for method in METHODS}


def _training(artifact: Artifact) -> dict[str, Any]:
    return artifact.json("training.json")


def _losses(artifact: Artifact) -> list[float]:
    return [point["loss"] for point in artifact.json("records/loss_curve.json")["curve"]]


def _consumed(artifact: Artifact) -> list[list[str]]:
    lines = (artifact.directory / "records" / "consumed.jsonl").read_text().splitlines()
    return [json.loads(line)["ids"] for line in lines]


@pytest.mark.parametrize("method", METHODS)
def test_a_method_lowers_the_held_out_loss(suite: dict[str, Artifact], method: str) -> None:
    training = _training(suite[method])
    assert training["held_out_loss"] < training["held_out_loss_before"] - 0.02
    assert 0 < training["held_out_loss_stderr"] < 1
    assert training["held_out_samples"] == training["data"]["held_out"]["samples"] <= 40
    record = pq.read_table(suite[method].directory / "records" / "held_out.parquet").to_pydict()
    assert len(set(record["sample"])) == training["held_out_samples"]
    for column, suffix in (("nll", ""), ("nll_before", "_before")):
        assert sum(record[column]) / sum(record["tokens"]) == pytest.approx(training[f"held_out_loss{suffix}"])
        # Every prompt of the embedded questions comes once, and is a cluster of its own.
        error = ratio_standard_error(record[column], record["tokens"])
        assert error == pytest.approx(training[f"held_out_loss{suffix}_stderr"])


def test_methods_of_a_suite_consume_the_same_samples_in_the_same_order(suite: dict[str, Artifact]) -> None:
    consumed = {method: _consumed(artifact) for method, artifact in suite.items()}
    first = consumed["lora"]
    assert [len(ids) for ids in first] == [8] * 12
    assert len({id for ids in first for id in ids}) == 96, "no sample twice within a pass"
    assert all(other == first for other in consumed.values())
    shared = ("sample_order_sha256", "samples_per_step", "steps", "samples_seen", "held_out_tokens", "parameters")
    assert len({tuple(_training(artifact)[key] for key in shared) for artifact in suite.values()}) == 1


def test_sizes_are_those_of_what_is_trained(suite: dict[str, Artifact]) -> None:
    sizes = {method: _training(artifact) for method, artifact in suite.items()}
    total = sizes["full"]["parameters"]
    assert sizes["full"]["parameters_trainable"] == total
    assert sizes["lora"]["parameters_trainable"] < sizes["dora"]["parameters_trainable"] < total
    assert sizes["lora"]["parameters_trainable"] < sizes["freeze"]["parameters_trainable"] < total
    assert sizes["full"]["adapter_bytes"] is sizes["freeze"]["adapter_bytes"] is None
    weights = suite["lora"].directory / "adapter" / "adapter_model.safetensors"
    assert sizes["lora"]["adapter_bytes"] == weights.stat().st_size > 4 * sizes["lora"]["parameters_trainable"]


def test_the_micro_batch_changes_neither_samples_nor_losses(
    finetunes: Finetunes, suite: dict[str, Artifact], tmp_path: Path
) -> None:
    smaller = finetunes.run(tmp_path, "full", micro_batch_size=2)
    assert _consumed(smaller) == _consumed(suite["full"])
    assert _losses(smaller) == pytest.approx(_losses(suite["full"]), rel=TOLERANCE)
    assert _training(smaller)["held_out_loss"] == pytest.approx(
        _training(suite["full"])["held_out_loss"], rel=TOLERANCE
    )


def test_activation_checkpointing_changes_no_loss(
    finetunes: Finetunes, suite: dict[str, Artifact], tmp_path: Path
) -> None:
    recomputed = finetunes.run(tmp_path, "lora", activation_checkpointing=True)
    assert _losses(recomputed) == pytest.approx(_losses(suite["lora"]), rel=1e-5)


def test_packed_samples_are_learned_from(finetunes: Finetunes, tmp_path: Path) -> None:
    encoding = finetunes.spec("lora")["config"]["encoding"] | {"packing": True}
    packed = finetunes.run(tmp_path, "lora", encoding=encoding, max_steps=6, checkpoint_every_steps=2)
    training = _training(packed)
    assert training["packing"]
    assert training["samples_seen"] == sum(map(len, _consumed(packed))) > 6 * training["samples_per_step"]
    assert training["held_out_loss"] < training["held_out_loss_before"]


@pytest.mark.parametrize("kind", ["lora", "loha", "glora"])
def test_bfloat16_trains_float32_adapters_over_16_bit_weights(finetunes: Finetunes, tmp_path: Path, kind: str) -> None:
    changes: dict[str, Any] = {"dtype": "bfloat16", "max_steps": 6, "checkpoint_every_steps": 2}
    if kind != "lora":
        size = {"rank": 8, "target_modules": "all-linear"}
        changes["method"] = {"kind": kind, "match_parameters": size}
        changes["learning_rate"] = 5e-3
    artifact = finetunes.run(tmp_path, "lora", **changes)
    training = _training(artifact)
    if kind != "lora":
        assert training["parameters_trainable"] == pytest.approx(training["parameters_matched"], rel=0.1)
    assert training["held_out_loss"] < training["held_out_loss_before"]
    assert training["adapter_bytes"] > 4 * training["parameters_trainable"]


@pytest.mark.parametrize(
    ("method", "parallel"),
    [
        ("pissa", {"strategy": "zero2", "devices": 2, "nodes": 1, "offload": False}),
        # The first of these on a machine compiles DeepSpeed's optimizer.
        *(
            pytest.param(
                "full-offload",
                {"strategy": "zero3", "devices": devices, "nodes": 1, "offload": True},
                marks=pytest.mark.slow,
            )
            for devices in (1, 2)
        ),
    ],
)
@pytest.mark.usefixtures("forked_ranks")
def test_ranks_learn_what_one_process_learns(
    finetunes: Finetunes, suite: dict[str, Artifact], tmp_path: Path, method: str, parallel: dict[str, Any]
) -> None:
    """Full fine-tuning under ZeRO-3 with offload, and an adapter under ZeRO-2, against one process without either."""
    changes: dict[str, Any] = {"parallel": parallel, "micro_batch_size": 4}
    if method == "pissa":
        # Ranks draw dropout apart.
        changes["method"] = finetunes.spec("pissa")["config"]["method"] | {"dropout": 0.0}
        alone = finetunes.run(tmp_path / "alone", "pissa", method=changes["method"])
    else:
        alone = suite["full"]
    several = finetunes.run(tmp_path / "several", method, **changes)
    assert _losses(several) == pytest.approx(_losses(alone), rel=TOLERANCE)
    assert _training(several)["held_out_loss"] == pytest.approx(_training(alone)["held_out_loss"], rel=TOLERANCE)
    assert _training(several)["sample_order_sha256"] == _training(alone)["sample_order_sha256"]
    assert [sorted(ids) for ids in _consumed(several)] == [sorted(ids) for ids in _consumed(alone)]


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_adapter_bit_for_bit(finetunes: Finetunes, tmp_path: Path) -> None:
    """PiSSA with dropout: the base's residual and the generator's state must be those of the run that was killed."""
    changes = {"max_steps": 12, "checkpoint_every_steps": 4, "log_every_steps": 2}
    whole, whole_output = finetunes.command(tmp_path, "whole", "pissa", **changes)
    run_program(whole)
    killed, killed_output = finetunes.command(tmp_path, "killed", "pissa", **changes)
    held = Held(tmp_path / "killed" / ".scratch" / "finetune" / _id("pissa"))
    held.kill_at(4, killed)
    assert not (killed_output / MANIFEST).exists()
    run_program(killed)
    first, second = Artifact.open(whole_output / MANIFEST), Artifact.open(killed_output / MANIFEST)
    assert second.json("records/efficiency.json")["resumed_at_step"] == 4
    assert first.manifest.payload == second.manifest.payload
    assert _consumed(first) == _consumed(second)
    assert _losses(first) == _losses(second)


def test_a_lost_run_is_a_status_of_its_cell(finetunes: Finetunes, tmp_path: Path) -> None:
    # Decoupled decay multiplies the weights by -1e11 at every step.
    artifact = finetunes.run(tmp_path, "full", learning_rate=0.1, optimizer={"weight_decay": 1e12})
    assert artifact.manifest.status == "nan"
    assert "training loss" in str(artifact.manifest.reason)


def test_a_merged_model_is_a_model_like_any_other(
    builder: Any, suite: dict[str, Artifact], tiny_text: dict[str, Any]
) -> None:
    """The graph merges an adapter and takes a fully trained model as it is; nothing is trained again for it."""
    study = cut_down(tiny_text)
    for method in ("dora", "full"):
        source = {"kind": "finetuned", "suite": "describe", "model": "llama-1m", "method": method}
        study["models"][f"llama-1m.{method}"] = {"source": source}
    root = Path(builder.graph.results).parent
    builder = Builder(json.loads(json.dumps(study)), root)
    assert builder.graph.spec("finetune", _id("dora")) == suite["dora"].manifest.spec
    base = load_causal_lm(builder.build("pretrain", "llama-1m").directory / "model")
    tokens = torch.arange(5, 25)[None]
    adapted = load_adapter(base, suite["dora"].directory / "adapter").eval()
    merge = builder.build("merge", _id("dora"))
    merged = AutoModelForCausalLM.from_pretrained(merge.directory / "model").eval()
    with torch.no_grad():
        expected, actual = adapted(tokens).logits, merged(tokens).logits
    torch.testing.assert_close(actual, expected, atol=1e-5 * expected.abs().max().item(), rtol=0)
    assert AutoTokenizer.from_pretrained(merge.directory / "model").chat_template
    assert builder.graph.parents("quantize", "llama-1m.dora.bfloat16")["model"].endswith(
        "merge/llama-1m.describe.dora/manifest.json"
    )
    assert builder.build("quantize", "llama-1m.dora.bfloat16").manifest.status == "ok"
    assert builder.graph.parents("quantize", "llama-1m.full.bfloat16")["model"].endswith(
        "finetune/llama-1m.describe.full/manifest.json"
    )


def test_more_samples_per_step_than_there_are_is_refused(finetunes: Finetunes, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"finetuning\.describe: samples_per_step 4000 .* lower it"):
        finetunes.run(tmp_path, "lora", samples_per_step=4000)


def test_every_pass_has_an_order_of_its_own_and_no_partial_step() -> None:
    order = sample_order(sequences=10, samples_per_step=4, steps=5, seed=3)
    assert order.shape == (20,)
    first, second = order[:8], order[8:16]
    assert len(set(first)) == len(set(second)) == 8
    assert list(first) != list(second)
    assert list(order) == list(sample_order(10, 4, 5, 3)) != list(sample_order(10, 4, 5, 4))
    assert list(sample_order(10, 4, 2, 3)) == list(first), "a longer run begins like a shorter one"
