"""Training of diffusion transformers: stopping and going on, micro batches, the moving average, and what is refused."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from transformers import AutoModel, TrainerControl

from effllm.data.images import prepare
from effllm.diffusion.draws import TrainingDraws
from effllm.errors import Interrupted, UserError
from effllm.models.dit import DiT, costs
from effllm.planning.nodes import nodes_behind
from effllm.runtime.artifact import Artifact
from effllm.runtime.stage import run
from effllm.stages import STAGES
from effllm.stages.graph import Graph
from effllm.study import parse_study
from effllm.training.diffuse import build
from effllm.training.ema import MovingAverage, take_average
from tests.slowdown import Held, environment

RUN = {
    "images": "digits",
    "architecture": {
        "model_type": "dit",
        "image_size": 8,
        "channels": 1,
        "patch_size": 2,
        "classes": 10,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    },
    "objective": {"kind": "ddpm"},
    "global_batch_size": 8,
    "micro_batch_size": 8,
    "max_steps": 6,
    "optimizer": {"learning_rate": 1e-2, "minimum_learning_rate": 1e-2, "warmup_steps": 0, "weight_decay": 0.0},
    "dtype": "float32",
    "deterministic": False,
    "checkpoint_every_steps": 2,
    "log_every_steps": 2,
    "held_out_draws": 1,
}
DIGITS = {"source": {"kind": "digits"}, "size": 8, "channels": 1, "held_out_fraction": 0.05}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifest of the digits."""
    return _images(tmp_path_factory.mktemp("images"), DIGITS)


def _images(root: Path, config: dict[str, Any]) -> Path:
    spec = {"stage": "images", "version": STAGES["images"].version, "config": config}
    output = root / "results" / "images" / "digits"
    return run(STAGES["images"], prepare.build, spec=spec, inputs={}, output=output).directory / "manifest.json"


def study_of(tiny: dict[str, Any], **changes: Any) -> Graph:
    others: dict[str, Any] = {"tables": {}, "sampling": {}, "features": {}, "fidelity": {}}
    own = {"images": {"digits": DIGITS}, "diffusion": {"dit": RUN | changes}, **others}
    return Graph(parse_study(tiny | own, "test"))


def train(tiny: dict[str, Any], digits: Path, root: Path, name: str, **changes: Any) -> Artifact:
    spec = study_of(tiny, **changes).spec("diffuse", "dit")
    output = root / "results" / "diffuse" / name
    return run(STAGES["diffuse"], build, spec=spec, inputs={"images": [digits]}, output=output)


@pytest.fixture(scope="module")
def whole(tiny_text: dict[str, Any], digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A run that nothing disturbed."""
    return train(tiny_text, digits, tmp_path_factory.mktemp("whole"), "whole")


def weights(artifact: Artifact) -> bytes:
    return (artifact.directory / "model" / "model.safetensors").read_bytes()


def test_a_stopped_run_ends_with_the_same_weights_bit_for_bit(tiny, digits, whole, tmp_path, monkeypatch):
    plain = TrainingDraws.__getitem__

    def stopping(draws: TrainingDraws, index: int) -> dict[str, Any]:
        if index == 3 * 8:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(draws, index)

    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="has saved step"):
        patch.setattr(TrainingDraws, "__getitem__", stopping)
        train(tiny, digits, tmp_path, "stopped")
    again = train(tiny, digits, tmp_path, "stopped")
    assert again.json("records/efficiency.json")["resumed_at_step"] in (3, 4)
    assert weights(again) == weights(whole)
    assert again.json("training.json") == whole.json("training.json")
    assert isinstance(AutoModel.from_pretrained(whole.directory / "model"), DiT)


def test_micro_batches_change_nothing_but_rounding_and_flops_are_the_models(tiny, digits, whole, tmp_path):
    parts = train(tiny, digits, tmp_path, "parts", micro_batch_size=2)
    ours, theirs = (AutoModel.from_pretrained(each.directory / "model").state_dict() for each in (whole, parts))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    quality, efficiency = whole.json("training.json"), whole.json("records/efficiency.json")
    shape = study_of(tiny).study.diffusion["dit"].architecture.shape()
    assert quality["parameters"] == costs.parameter_count(shape).total
    assert efficiency["flops"] == efficiency["steps"] * 8 * costs.training_flops(shape)
    assert efficiency["tokens"] == efficiency["steps"] * 8 * 16
    # Without training the mean squared error is that of the noise, 1.
    assert quality["held_out_loss"] < 0.99 and quality["images_seen"] == 48


def test_a_flow_through_experts_is_trained_and_its_last_weights_are_published(tiny, digits, tmp_path):
    architecture = RUN["architecture"] | {"learned_sigma": False, "attention": "nsa", "feed_forward": "moe"}
    keys = {"objective": {"kind": "flow"}, "architecture": architecture, "ema": None, "max_steps": 30}
    curve = train(tiny, digits, tmp_path, "flow", **keys).json("records/loss_curve.json")["curve"]
    assert curve[-1]["loss"] < 0.8 * curve[0]["loss"]


def test_the_average_follows_the_weights_and_comes_back_from_a_checkpoint(tmp_path):
    model = torch.nn.Linear(1, 1, bias=False)
    arguments, control = SimpleNamespace(output_dir=str(tmp_path)), TrainerControl()
    state = SimpleNamespace(global_step=0, is_world_process_zero=True)
    average = MovingAverage(model, 0.3, tmp_path)
    torch.nn.init.constant_(model.weight, 1.0)
    average.on_train_begin(arguments, state, control)
    expected = 1.0
    for step, value in enumerate((2.0, 5.0, -1.0, 4.0), start=1):
        torch.nn.init.constant_(model.weight, value)
        state.global_step = step
        if step == 3:
            # A new process, which begins with the weights of the checkpoint.
            average = MovingAverage(model, 0.3, tmp_path)
            average.on_train_begin(arguments, SimpleNamespace(global_step=2, is_world_process_zero=True), control)
        average.on_step_end(arguments, state, control)
        (tmp_path / f"checkpoint-{step}").mkdir()
        average.on_save(arguments, state, control)
        decay = min(0.3, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    average.on_train_end(arguments, state, control)
    take_average(model, tmp_path)
    assert model.weight.item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"objective": {"kind": "flow"}}, "learned_sigma: an objective of kind flow has no sigma: write false"),
        ({"parallel": {"strategy": "zero2", "devices": 2}, "micro_batch_size": 4}, "zero2 hides the weights that ema"),
        ({"architecture": RUN["architecture"] | {"image_size": 16}}, "image_size: 16 is not the 8 of 'digits'"),
        ({"architecture": RUN["architecture"] | {"channels": 3}}, "channels: 3 is not the 1 of 'digits'"),
        ({"architecture": RUN["architecture"] | {"classes": 9}}, "classes: 9 is not the 10 of 'digits': write 10"),
        ({"images": "digit"}, "diffusion.dit.images: 'digit' does not exist; did you mean 'digits'"),
    ],
)
def test_runs_that_do_not_fit_are_refused_before_anything_runs(tiny, changes, said):
    with pytest.raises(UserError, match=said):
        study_of(tiny, **changes)


@pytest.mark.usefixtures("forked_ranks")
def test_a_killed_run_of_two_ranks_goes_on_to_what_one_rank_trains(tiny, digits, whole, tmp_path):
    changes = {"parallel": {"strategy": "ddp", "devices": 2}, "micro_batch_size": 4}
    (tmp_path / "spec.json").write_text(json.dumps(study_of(tiny, **changes).spec("diffuse", "dit")))
    held = Held(tmp_path / "results" / ".scratch" / "diffuse" / "ranks")
    held.hold(2)
    command = [sys.executable, "-m", "effllm.training.diffuse", "--spec", str(tmp_path / "spec.json")]
    command += ["--output", str(tmp_path / "results" / "diffuse" / "ranks"), "--input", f"images={digits}"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment()) as process:
        try:
            held.reach(2)
            family = psutil.Process(process.pid).children(recursive=True)
        finally:
            process.kill()
    assert len(family) >= 3 and not psutil.wait_procs(family, timeout=20)[1]
    held.release()
    ranks = train(tiny, digits, tmp_path, "ranks", **changes)
    efficiency = ranks.json("records/efficiency.json")
    assert (efficiency["world_size"], efficiency["resumed_at_step"]) == (2, 2)
    losses = [[point["loss"] for point in each.json("records/loss_curve.json")["curve"]] for each in (ranks, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=2e-4)
    # The moving average too comes from the checkpoint.
    ours, theirs = (AutoModel.from_pretrained(each.directory / "model").state_dict() for each in (ranks, whole))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_a_run_in_bfloat16_keeps_its_weights_in_float32_and_loses_little(tiny, digits, whole, tmp_path):
    half = train(tiny, digits, tmp_path, "half", dtype="bfloat16")
    losses = [[point["loss"] for point in each.json("records/loss_curve.json")["curve"]] for each in (half, whole)]
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=0.02)
    weights = AutoModel.from_pretrained(half.directory / "model").state_dict()
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    assert any(not torch.equal(weight, weight.bfloat16().float()) for weight in weights.values())


@pytest.mark.gpu
@pytest.mark.parametrize(
    "changes",
    [{"compile": True}, {"parallel": {"strategy": "fsdp2", "devices": 1}}],
    ids=["compiled", "fsdp2"],
)
def test_a_gpu_trains_alike_compiled_or_sharded_and_averages_the_weights(tiny, digits, tmp_path, changes):
    found = [
        train(tiny, digits, tmp_path, name, dtype="bfloat16", **more)
        for name, more in (("plain", {}), ("changed", changes))
    ]
    plain, changed = ([point["loss"] for point in each.json("records/loss_curve.json")["curve"]] for each in found)
    assert changed == pytest.approx(plain, rel=0.02)
    ours, theirs = (AutoModel.from_pretrained(each.directory / "model").state_dict() for each in found)
    torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.01)


def test_a_batch_of_more_images_than_there_are_ends_in_a_sentence(tiny, digits, tmp_path):
    with pytest.raises(UserError, match="global_batch_size: 2000 is more than the 1"):
        train(tiny, digits, tmp_path, "large", global_batch_size=2000, micro_batch_size=2000)


def test_a_run_on_noise_measures_and_keeps_nothing(tiny, tmp_path):
    noise = {"source": {"kind": "noise", "images": 64, "classes": 10}, "size": 8, "channels": 4}
    manifest = _images(tmp_path, noise | {"held_out_fraction": 0.2})
    shape = RUN["architecture"] | {"channels": 4}
    spec = {"stage": "diffuse", "version": STAGES["diffuse"].version, "config": RUN | {"architecture": shape}}
    output = tmp_path / "results" / "diffuse" / "noise"
    built = run(STAGES["diffuse"], build, spec=spec, inputs={"images": [manifest]}, output=output)
    quality = built.json("training.json")
    assert quality["held_out_loss"] is None and quality["reasons"]["held_out_loss"] == "trained on noise"
    assert quality["images_seen"] == 48 and not (built.directory / "model").exists()
    assert built.json("records/efficiency.json")["tokens_per_s"] > 0
    with pytest.raises(UserError, match="channels: images of kind digits have 1 or 3, not 4"):
        parse_study(tiny | {"images": {"digits": DIGITS | {"channels": 4}}}, "test")


def test_its_cost_is_planned_from_the_shape(tiny):
    graph = study_of(tiny)
    shape = graph.study.diffusion["dit"].architecture.shape()
    assert list(nodes_behind(graph, ["diffuse/dit"])) == ["images/digits", "diffuse/dit"]
    config = json.loads(json.dumps(graph.spec("diffuse", "dit")["config"]))
    context = SimpleNamespace(config=config, config_of=lambda _: graph.spec("images", "digits")["config"])
    cost = STAGES["diffuse"].cost(context)
    assert cost.flops == 6 * 8 * costs.training_flops(shape)
    # Weights, gradients, two moments and the average.
    assert cost.memory_b > 20 * costs.parameter_count(shape).total
