"""Pretraining learns, resumes bit for bit after a kill, and calls a lost run by its name."""

import json
import math
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from effllm.data import arrays
from effllm.data.tokens import PackedTokens
from effllm.errors import EXIT_INTERRUPTED, UserError
from effllm.intervals import ratio_standard_error
from effllm.runtime.artifact import MANIFEST, Artifact
from effllm.runtime.stage import Job, run
from effllm.stages import STAGES
from effllm.training.checkpoints import latest_complete
from effllm.training.curriculum import training_order
from effllm.training.held_out import held_out_loss
from effllm.training.pretrain import setup
from effllm.training.settings import Curriculum
from tests.programs import run_program
from tests.slowdown import Held, environment


def _command(builder: Any, spec: dict[str, Any], root: Path, name: str) -> tuple[list[str], Path]:
    spec_file = root / f"{name}.json"
    spec_file.write_text(json.dumps(spec))
    tokens = builder.build("tokens", "python-docs").directory / MANIFEST
    tokenizer = builder.build("tokenizer", "python-docs-2k").directory / MANIFEST
    output = root / "results" / "pretrain" / name
    argv = [sys.executable, "-m", "effllm.training.pretrain", "--spec", str(spec_file), "--output", str(output)]
    return [*argv, "--input", f"tokens={tokens}", "--input", f"tokenizer={tokenizer}"], output


@pytest.fixture
def held(tmp_path: Path) -> Held:
    """The run `disturbed`."""
    return Held(tmp_path / "results" / ".scratch" / "pretrain" / "disturbed")


def test_a_killed_run_ends_with_the_same_weights_bit_for_bit(builder: Any, tmp_path: Path, held: Held) -> None:
    spec = builder.graph.spec("pretrain", "llama-1m")
    spec["config"] |= {"max_steps": 12, "checkpoint_every_steps": 4, "log_every_steps": 2}
    spec["config"] |= {"held_out_curve": {"points": 3, "tokens": 600}}
    whole, whole_output = _command(builder, spec, tmp_path, "whole")
    run_program(whole)
    killed, killed_output = _command(builder, spec, tmp_path, "disturbed")
    held.kill_at(4, killed)
    assert not (killed_output / MANIFEST).exists()
    run_program(killed)
    timing = json.loads((killed_output / "records" / "efficiency.json").read_text())
    assert timing["resumed_at_step"] == 4
    first, second = Artifact.open(whole_output / MANIFEST), Artifact.open(killed_output / MANIFEST)
    assert first.manifest.payload == second.manifest.payload
    curve = json.loads((killed_output / "records" / "loss_curve.json").read_text())
    assert curve == json.loads((whole_output / "records" / "loss_curve.json").read_text())
    assert [point["step"] for point in curve["held_out"]] == [3, 6, 12]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "mamba2"])
def test_a_run_that_is_told_to_stop_saves_at_once_and_ends_with_the_same_weights(
    builder: Any, tmp_path: Path, held: Held, family: str
) -> None:
    spec = builder.graph.spec("pretrain", "llama-1m")
    if family == "mamba2":
        shape = {"hidden_size": 32, "num_hidden_layers": 2, "chunk_size": 16}
        spec["config"]["architecture"] = {"model_type": family, **shape}
    spec["config"] |= {"max_steps": 12, "checkpoint_every_steps": 4, "log_every_steps": 1}
    whole, whole_output = _command(builder, spec, tmp_path, "whole")
    run_program(whole)
    stopped, stopped_output = _command(builder, spec, tmp_path, "disturbed")
    held.hold(4)
    process = subprocess.Popen(stopped, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment())
    held.reach(4)
    process.send_signal(signal.SIGTERM)
    held.release()
    output = process.communicate(timeout=120)[0]
    assert process.returncode == EXIT_INTERRUPTED, output
    # No checkpoint is due after step 5.
    assert "error: disturbed was told to stop and has saved step 5 of 12: run again to go on" in output
    assert "Traceback" not in output
    run_program(stopped)
    timing = json.loads((stopped_output / "records" / "efficiency.json").read_text())
    assert timing["resumed_at_step"] == 5
    first, second = Artifact.open(whole_output / MANIFEST), Artifact.open(stopped_output / MANIFEST)
    assert first.manifest.payload == second.manifest.payload


def test_efficiency_is_of_steady_steps_without_saves(builder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three warm-up steps are left out, and writing checkpoints pauses the window (each save is made to last)."""
    from effllm.training import checkpoints

    saved = []

    def slow_save(self: Any, args: Any, state: Any, control: Any, **_: Any) -> Any:
        time.sleep(0.5)
        saved.append(state.global_step)
        return original(self, args, state, control)

    original = checkpoints.MarkComplete.on_save
    monkeypatch.setattr(checkpoints.MarkComplete, "on_save", slow_save)
    # Another test may have built it already.
    shutil.rmtree(Path(builder.graph.manifest("pretrain", "qwen2-1m")).parent, ignore_errors=True)
    artifact = builder.build("pretrain", "qwen2-1m")
    steps = builder.graph.study.pretraining["qwen2-1m"].max_steps
    efficiency = json.loads((artifact.directory / "records" / "efficiency.json").read_text())
    assert saved == [4, 8, 12]
    assert efficiency["steps"] == steps - 3
    assert efficiency["telemetry"]["windows"] == 1
    assert efficiency["telemetry"]["duration_s"] == pytest.approx(9 * efficiency["latency_s_per_iteration"])
    windows = json.loads((artifact.directory / "records" / "telemetry" / "windows.json").read_text())
    (window,) = windows["windows"] if isinstance(windows, dict) else windows
    paused_s = sum((end - start) / 1e9 for start, end in window["paused"])
    assert paused_s >= 1.5, "three saves of half a second"


def test_half_a_checkpoint_is_never_resumed_from(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        (tmp_path / f"checkpoint-{step}").mkdir()
    for step in (5, 10):
        (tmp_path / f"checkpoint-{step}" / "complete").touch()
    assert latest_complete(tmp_path) == tmp_path / "checkpoint-10"
    assert not (tmp_path / "checkpoint-15").exists()
    assert latest_complete(tmp_path / "empty") is None


def test_training_lowers_the_held_out_loss(builder: Any) -> None:
    artifact = builder.build("pretrain", "llama-1m")
    result = artifact.json("training.json")
    assert result["held_out_loss"] < math.log(2048) - 0.2
    assert result["held_out_perplexity"] == pytest.approx(math.exp(result["held_out_loss"]))
    record = pq.read_table(artifact.directory / "records" / "held_out.parquet").to_pydict()
    assert record["document"] == list(range(result["held_out_documents"]))
    assert sum(record["tokens"]) == result["held_out_tokens"]
    assert sum(record["nll"]) / sum(record["tokens"]) == pytest.approx(result["held_out_loss"])
    assert ratio_standard_error(record["nll"], record["tokens"]) == pytest.approx(result["held_out_loss_stderr"])
    curve = json.loads((artifact.directory / "records" / "loss_curve.json").read_text())["curve"]
    assert curve[-1]["loss"] < curve[0]["loss"]


def test_held_out_loss_equals_a_token_by_token_computation(builder: Any) -> None:
    artifact = builder.build("pretrain", "llama-1m")
    model = AutoModelForCausalLM.from_pretrained(artifact.directory / "model")
    stream = PackedTokens.open(builder.build("tokens", "python-docs").directory, "held_out")
    stream.ids = stream.ids[:150]
    # Three documents, the second of which ends where a window does, and one that begins at the text's end.
    stream.boundaries = np.array([40, 64, 150, 200])
    result = held_out_loss(model, stream, sequence_length=64, batch_size=2)
    total = 0.0
    by_document = {0: [0.0, 0], 1: [0.0, 0], 2: [0.0, 0]}
    with torch.inference_mode():
        for position in range(1, 150):
            start = (position - 1) // 63 * 63
            logits = model(torch.tensor([stream.ids[start:position].tolist()])).logits[0, -1]
            nll = -torch.log_softmax(logits.double(), -1)[int(stream.ids[position])].item()
            total += nll
            document = by_document[sum(position >= end for end in (40, 64))]
            document[0] += nll
            document[1] += 1
    assert result.tokens == 149
    assert (result.documents, result.by_document["document"].to_pylist()) == (3, [0, 1, 2])
    assert result.by_document["tokens"].to_pylist() == [count for _, count in by_document.values()] == [39, 24, 86]
    sums = [nll for nll, _ in by_document.values()]
    assert result.by_document["nll"].to_pylist() == pytest.approx(sums, rel=1e-5)
    # sqrt(3 / 2 * sum of squared residuals) / tokens, the residuals those of whole documents.
    residuals = [nll - count * total / 149 for nll, count in by_document.values()]
    assert result.loss_stderr == pytest.approx(math.sqrt(1.5 * sum(r * r for r in residuals)) / 149, rel=1e-4)
    assert result.loss == pytest.approx(total / 149, rel=1e-5)
    assert result.bits_per_byte == pytest.approx(total / math.log(2) / stream.utf8_bytes, rel=1e-5)


def test_a_diverged_run_is_a_cell_with_status_nan(builder: Any, tmp_path: Path) -> None:
    spec = builder.graph.spec("pretrain", "llama-1m")
    spec["config"]["optimizer"] |= {"learning_rate": 0.1, "weight_decay": 1e12, "warmup_steps": 0}
    command, output = _command(builder, spec, tmp_path, "diverged")
    run_program(command)
    manifest = Artifact.open(output / MANIFEST).manifest
    assert manifest.status == "nan"
    assert "training loss is nan at step" in manifest.reason


@pytest.mark.parametrize("run", ["llama-1m", "qwen2-1m"])
def test_the_model_loads_without_this_package(builder: Any, run: str) -> None:
    directory = builder.build("pretrain", run).directory / "model"
    code = (
        "import sys; from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f"m = AutoModelForCausalLM.from_pretrained({str(directory)!r})\n"
        f"t = AutoTokenizer.from_pretrained({str(directory)!r})\n"
        "print(t.decode(m.generate(**t('def', return_tensors='pt'), max_new_tokens=4)[0]))\n"
        "assert 'effllm' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("def")
    assert len(AutoTokenizer.from_pretrained(directory)) == 2048


def test_the_artifact_says_which_kernel_ran_and_one_that_cannot_fails_the_cell(pretrain: Any) -> None:
    shape = {
        "model_type": "effllm",
        "position": "relative",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
    }
    run = pretrain("chosen", architecture=shape, max_steps=4, checkpoint_every_steps=None, log_every_steps=4)
    run.run()
    assert run.record("efficiency.json")["kernels"] == {"relative": {"chunked": "it needs CUDA, not cpu"}}
    forced = pretrain("forced", architecture=shape, max_steps=4, kernels={"relative": "near_far"})
    assert forced.run().manifest.status == "unsupported"


def _inputs(builder: Any, order: Artifact) -> list[tuple[str, Path]]:
    built = {
        "tokens": builder.build("tokens", "python-docs"),
        "tokenizer": builder.build("tokenizer", "python-docs-2k"),
    }
    return [(name, artifact.directory / MANIFEST) for name, artifact in ({"order": order} | built).items()]


@pytest.fixture(scope="module")
def by_loss(builder: Any, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """An order of the cut-down study's windows by the loss of its own model."""
    from effllm.data.order.build import build

    by = {"kind": "loss", "run": "llama-1m", "batch_size": 64}
    spec = {"stage": "order", "version": STAGES["order"].version}
    spec["config"] = {"tokens": "python-docs", "sequence_length": 64, "by": by}
    inputs = {"tokens": builder.build("tokens", "python-docs"), "model": builder.build("pretrain", "llama-1m")}
    paths = {name: [artifact.directory / MANIFEST] for name, artifact in inputs.items()}
    return run(
        STAGES["order"], build, spec=spec, inputs=paths, output=tmp_path_factory.mktemp("results") / "order" / "by-loss"
    )


def test_the_loss_of_a_window_is_what_its_model_says_token_by_token(builder: Any, by_loss: Artifact) -> None:
    model = AutoModelForCausalLM.from_pretrained(builder.build("pretrain", "llama-1m").directory / "model")
    stream = PackedTokens.open(builder.build("tokens", "python-docs").directory, "train")
    difficulty = arrays.load(by_loss.directory / "difficulty.npy")
    assert len(difficulty) == len(stream) // 64 and np.isfinite(difficulty).all()
    said = by_loss.json("order.json")
    assert (said["documents"], said["windows_without_value"]) == (None, 0)
    for number in (0, 5, len(difficulty) - 1):
        ids = torch.tensor(stream.ids[number * 64 : number * 64 + 64].astype(np.int64))
        with torch.inference_mode():
            losses = [
                -torch.log_softmax(model(ids[None, :end]).logits[0, -1].double(), -1)[ids[end]] for end in range(1, 64)
            ]
        assert difficulty[number] == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)


ORDER = {"by": "by-loss", "share": 0.75, "pacing": {"start": 0.2, "full_at": 0.9}, "segments": 2}


def _spec(builder: Any) -> dict[str, Any]:
    spec = builder.graph.spec("pretrain", "llama-1m")
    spec["config"] |= {"max_steps": 8, "checkpoint_every_steps": 4, "log_every_steps": 2, "order": ORDER}
    return spec


def test_training_reads_the_windows_in_the_order_of_the_artifact(
    builder: Any, by_loss: Artifact, tmp_path: Path
) -> None:
    artifacts = {name: Artifact.open(path) for name, path in _inputs(builder, by_loss)}
    job = Job("pretrain", "", "x", _spec(builder), artifacts, {}, tmp_path, tmp_path, tmp_path)
    made = setup(job)
    difficulty = arrays.load(by_loss.directory / "difficulty.npy")
    expected = training_order(Curriculum.model_validate(ORDER), difficulty, 4, 8, seed=0)
    stream = PackedTokens.open(artifacts["tokens"].directory, "train").sequences(64)
    assert not made.shuffle and len(made.dataset) == len(expected) == 32
    assert all((made.dataset[place] == stream[int(number)]).all() for place, number in enumerate(expected))
    del job.spec["config"]["order"]
    at_random = setup(job)
    assert at_random.shuffle and len(at_random.dataset) == len(stream)
    job.spec["config"] |= {"order": ORDER, "global_batch_size": 1 << 20}
    with pytest.raises(UserError, match=r"pretraining\.x\.order: \d+ sequences of 64 tokens are fewer than one step"):
        setup(job)


@pytest.mark.slow
def test_a_killed_run_goes_on_in_its_order_bit_for_bit(builder: Any, by_loss: Artifact, tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text(json.dumps(_spec(builder)))
    argv = [sys.executable, "-m", "effllm.training.pretrain", "--spec", str(tmp_path / "spec.json")]
    argv += [part for name, path in _inputs(builder, by_loss) for part in ("--input", f"{name}={path}")]
    outputs = {name: tmp_path / "results" / "pretrain" / name for name in ("whole", "killed")}
    run_program([*argv, "--output", str(outputs["whole"])])
    held = Held(tmp_path / "results" / ".scratch" / "pretrain" / "killed")
    held.kill_at(4, [*argv, "--output", str(outputs["killed"])])
    held.release()
    run_program([*argv, "--output", str(outputs["killed"])])
    timing = json.loads((outputs["killed"] / "records" / "efficiency.json").read_text())
    assert timing["resumed_at_step"] == 4
    whole, killed = (Artifact.open(output / MANIFEST).manifest.payload for output in outputs.values())
    assert whole == killed
