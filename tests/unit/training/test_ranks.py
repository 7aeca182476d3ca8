"""Several ranks train what one trains, and a rank that fails ends the run with one verdict."""

import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from effllm.errors import EXIT_INTERRUPTED, EXIT_USER_ERROR, UserError
from effllm.models.decoder import EffConfig, EffForCausalLM
from effllm.runtime.stage import Job
from effllm.training import launcher, ranks
from effllm.training.arguments import _parallel_arguments, deepspeed_config, gather_by_layer, mixed_precision_policy
from effllm.training.settings import AdamW, Parallel, Recipe
from tests.programs import run_program
from tests.slowdown import Held, environment

# The same sums in another order, in float32, over twelve steps of AdamW.
TOLERANCE = 2e-4
DECODER = {
    "model_type": "effllm",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.06,
}


CURVE = {"points": 2, "tokens": 500}


@pytest.fixture(scope="module")
def one_rank(builder: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from .conftest import PretrainCommand

    changes = {"micro_batch_size": 2, "held_out_curve": CURVE}
    command = PretrainCommand(builder, tmp_path_factory.mktemp("one"), "one", changes)
    command.run()
    assert command.record("efficiency.json")["world_size"] == 1
    return command


@pytest.mark.parametrize(
    ("strategy", "devices", "offload"),
    [
        ("ddp", 2, False),
        ("zero2", 2, False),
        # The first of these on a machine compiles DeepSpeed's optimizer.
        pytest.param("zero3", 1, True, marks=pytest.mark.slow),
        pytest.param("zero3", 2, True, marks=pytest.mark.slow),
        pytest.param("zero3", 2, False, marks=pytest.mark.slow),
    ],
)
def test_the_loss_curve_does_not_depend_on_the_ranks(
    pretrain: Callable[..., Any],
    one_rank: Any,
    strategy: str,
    devices: int,
    offload: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Four sequences a step: one rank takes them in two micro batches, two ranks one each."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    parallel = {"strategy": strategy, "devices": devices, "offload": offload}
    command = pretrain("several", micro_batch_size=2, parallel=parallel, held_out_curve=CURVE)
    command.run()
    assert command.losses() == pytest.approx(one_rank.losses(), rel=TOLERANCE)
    for ours, theirs in zip(command.held_out(), one_rank.held_out(), strict=True):
        assert ours == {**theirs, "loss": pytest.approx(theirs["loss"], rel=TOLERANCE)}
    efficiency = command.record("efficiency.json")
    assert efficiency["world_size"] == devices
    assert efficiency["strategy"] == strategy
    assert efficiency["tokens"] == efficiency["steps"] * 4 * 64
    assert (command.output / "records" / "ranks" / "rank-1.log").exists() == (devices == 2)
    assert list(temporary.iterdir()) == []


@pytest.mark.slow
def test_experts_are_balanced_over_all_ranks(pretrain: Callable[..., Any]) -> None:
    """The load-balancing loss is weighted by each micro batch's share of all ranks' tokens."""
    shape = {**DECODER, "feed_forward": "moe", "num_experts": 4}
    one = pretrain("one", micro_batch_size=2, architecture=shape)
    two = pretrain("two", micro_batch_size=2, architecture=shape, parallel={"strategy": "ddp", "devices": 2})
    one.run()
    two.run()
    assert two.losses() == pytest.approx(one.losses(), rel=TOLERANCE)


@pytest.mark.slow
def test_a_run_goes_on_after_its_stage_was_killed_and_after_a_rank_was(
    pretrain: Callable[..., Any], one_rank: Any
) -> None:
    killed = pretrain("killed", micro_batch_size=2, held_out_curve=CURVE, parallel={"strategy": "ddp", "devices": 2})
    held = Held(killed.work.parent)
    for step, kills_a_rank in ((4, False), (8, True)):
        held.hold(step)
        process = subprocess.Popen(
            killed.argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment()
        )
        held.reach(step)
        family = psutil.Process(process.pid).children(recursive=True)
        second = [each for each in family if each.environ().get("RANK") == "1"]
        assert len(family) >= 3 and second, "torchrun and two ranks"
        (second[0] if kills_a_rank else process).send_signal(signal.SIGKILL)
        # A rank that waits for the test does not see that the other is gone, and torchrun gives it half a minute.
        held.release()
        output = process.communicate(timeout=120)[0]
        _, alive = psutil.wait_procs(family, timeout=20)
        assert not alive
    assert process.returncode == EXIT_USER_ERROR, output
    assert output.splitlines()[-1].startswith(
        "error: rank 1 of 2 was ended by SIGKILL (out of memory, if nobody sent it)"
    )
    killed.run()
    assert killed.record("efficiency.json")["resumed_at_step"] == 8
    assert killed.losses() == pytest.approx(one_rank.losses(), rel=TOLERANCE)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_rank_that_a_signal_ended_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """A kill is the machine's or somebody's doing, whatever other ranks say then; other signals are defects."""
    failures = {1: SimpleNamespace(exitcode=-number), 0: SimpleNamespace(exitcode=1)}

    def torchrun(arguments: list[str]) -> None:
        assert arguments[-3:] == ["effllm.runtime.start", "effllm.training.rank", str(tmp_path / "work" / "job.json")]
        error = launcher.ChildFailedError.__new__(launcher.ChildFailedError)
        error.failures = failures
        raise error

    def run(argv: list[str], _environment: dict[str, str]) -> int:
        assert argv[1:4] == ["-m", "effllm.runtime.start", "effllm.training.launcher"]
        monkeypatch.setattr(sys, "argv", argv[3:])
        with pytest.raises(launcher.ChildFailedError):
            launcher.main()
        return 1

    monkeypatch.setattr(launcher.run, "main", torchrun)
    monkeypatch.setattr(launcher, "libraries_imported", lambda: None)
    monkeypatch.setattr(ranks.torchrun, "run", run)
    (tmp_path / "work").mkdir()
    paths = {"output": tmp_path / "out", "records": tmp_path / "records", "scratch": tmp_path / "work"}
    job = Job(stage="pretrain", module="effllm.training.pretrain", id="a", spec={}, inputs={}, files={}, **paths)
    expected = {
        signal.SIGKILL: (UserError, r"rank 1 of 2 was ended by SIGKILL .* run again to go on where it stopped"),
        signal.SIGSEGV: (RuntimeError, "the ranks ended with code 1, rank 1 by SIGSEGV"),
    }[number]
    with pytest.raises(expected[0], match=expected[1]):
        ranks.run_ranks(job, Parallel(strategy="ddp", devices=2))


@pytest.mark.slow
def test_ranks_that_are_told_to_stop_save_the_same_step_and_end(pretrain: Callable[..., Any]) -> None:
    """The signal reaches the stage alone, which is not a rank itself."""
    settings = {"max_steps": 5000, "checkpoint_every_steps": 5000, "log_every_steps": 1, "micro_batch_size": 2}
    stopped = pretrain("stopped", **settings, parallel={"strategy": "ddp", "devices": 2})
    process = subprocess.Popen(stopped.argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for line in process.stdout:
        if "'loss'" in line:
            process.send_signal(signal.SIGTERM)
            break
    output = process.communicate(timeout=120)[0]
    assert process.returncode == EXIT_INTERRUPTED, output
    # torchrun says more, above it.
    last = output.splitlines()[-1]
    said = re.match(r"error: stopped was told to stop and has saved step (\d+) of 5000: run again to go on", last)
    assert said, output
    assert (stopped.work / f"checkpoint-{said.group(1)}" / "complete").exists()


@pytest.mark.slow
def test_a_lost_run_of_two_ranks_is_a_cell_with_status_nan(pretrain: Callable[..., Any]) -> None:
    optimizer = {"learning_rate": 0.1, "weight_decay": 1e12, "warmup_steps": 0}
    parallel = {"strategy": "ddp", "devices": 2}
    manifest = pretrain("lost", optimizer=optimizer, micro_batch_size=2, parallel=parallel).run().manifest
    assert manifest.status == "nan"
    assert "training loss is nan at step" in manifest.reason


def test_fsdp_without_cuda_is_refused_in_one_sentence(pretrain: Callable[..., Any]) -> None:
    command = pretrain("sharded", micro_batch_size=2, parallel={"strategy": "fsdp2", "devices": 2})
    result = run_program(command.argv, check=False)
    assert result.returncode == 2
    assert [line for line in result.stdout.splitlines() if line.startswith("error: ")] == [
        "error: parallel.strategy: fsdp2 needs CUDA devices; choose ddp, zero2 or zero3, or run where there are some."
    ]


@pytest.mark.parametrize("recomputes", [False, True])
def test_fsdp2_recomputes_by_its_own_wrapper_and_leaves_inputs_alone(recomputes: bool) -> None:
    optimizer = AdamW(learning_rate=1e-3, minimum_learning_rate=1e-4, warmup_steps=0)
    sizes = {"global_batch_size": 4, "micro_batch_size": 2, "max_steps": 2, "checkpoint_every_steps": None}
    parallel = Parallel(strategy="fsdp2", devices=2)
    recipe = Recipe(**sizes, optimizer=optimizer, parallel=parallel, activation_checkpointing=recomputes)
    expected = {"fsdp": True, "fsdp_config": {"version": 2, "activation_checkpointing": recomputes}}
    assert _parallel_arguments(recipe, use_cpu=False) == expected
    policy = mixed_precision_policy()
    assert (policy.param_dtype, policy.reduce_dtype, policy.output_dtype) == (torch.bfloat16, torch.float32, None)
    assert not policy.cast_forward_inputs


def test_offloading_moves_weights_to_the_host_under_zero3_only() -> None:
    zero3 = deepspeed_config(Parallel(strategy="zero3", offload=True))["zero_optimization"]
    zero2 = deepspeed_config(Parallel(strategy="zero2", offload=True))["zero_optimization"]
    assert zero3["offload_param"]["device"] == zero3["offload_optimizer"]["device"] == "cpu"
    assert zero2["offload_optimizer"]["device"] == "cpu"
    assert "offload_param" not in zero2


@pytest.mark.slow
def test_zero3_gathers_a_layer_and_not_each_of_its_modules() -> None:
    from deepspeed.utils import z3_leaf_module

    model = EffForCausalLM(EffConfig(vocab_size=64, **{key: DECODER[key] for key in DECODER if key != "model_type"}))
    gather_by_layer(model)
    assert [name for name, module in model.named_modules() if z3_leaf_module(module)] == ["model.layers.0"]
