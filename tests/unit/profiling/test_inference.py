"""The fixed workload generates what was asked and times it the way its docstrings say."""

import itertools
import json
import time
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from effllm.errors import CellFailure
from effllm.profiling import decoding
from effllm.profiling.decoding import Repeat, TimedDecoding
from effllm.profiling.figures import latency_figures
from effllm.study.measure import InferenceProtocol


@pytest.fixture(scope="module")
def model() -> Any:
    config = AutoConfig.for_model(
        "llama",
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=300,
        eos_token_id=list(range(150)),
        pad_token_id=0,
    )
    return AutoModelForCausalLM.from_config(config).eval()


def test_exactly_the_asked_tokens_are_generated_past_every_end_of_text(model: Any) -> None:
    prompt = torch.randint(300, (3, 7))
    repeat = TimedDecoding(model, prompt, new_tokens=5, device="cpu").run()
    assert repeat.generated_tokens == 15
    assert len(repeat.token_s) == 4
    assert repeat.first_token_s > 0


def test_decoding_is_greedy_and_cached_as_a_plain_forward_says(model: Any) -> None:
    model.generation_config.eos_token_id = None
    prompt = torch.randint(300, (1, 6), generator=torch.Generator().manual_seed(0))
    timed = TimedDecoding(model, prompt, new_tokens=6, device="cpu")
    timed.config.eos_token_id = None
    ids = prompt
    for _ in range(6):
        ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
    with torch.inference_mode():
        assert torch.equal(model.generate(prompt, generation_config=timed.config), ids)


def test_times_are_those_of_a_known_clock(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each forward advances a fake clock: 100 ms for the prompt, 10 ms for a token."""
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    forward = type(model).forward

    def slow(self: Any, input_ids: torch.Tensor, **arguments: Any) -> Any:
        clock[0] += 0.1 if input_ids.shape[1] > 1 else 0.01
        return forward(self, input_ids, **arguments)

    monkeypatch.setattr(type(model), "forward", slow)
    repeat = TimedDecoding(model, torch.randint(300, (1, 7)), new_tokens=5, device="cpu").run()
    assert repeat.first_token_s == pytest.approx(0.1)
    assert repeat.token_s == pytest.approx([0.01] * 4)
    assert repeat.total_s == pytest.approx(0.14)


def test_opening_windows_is_in_no_latency(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()
    monkeypatch.setattr(decoding.time, "perf_counter", lambda: float(next(clock)))
    calls: list[str] = []

    class SlowTelemetry:
        def window(self, name: str) -> Any:
            import contextlib

            return contextlib.nullcontext()

        def begin_window(self, name: str) -> None:
            calls.append(f"begin {name}")
            for _ in range(1000):
                next(clock)

        def end_window(self, name: str) -> None:
            calls.append(f"end {name}")
            for _ in range(1000):
                next(clock)

    repeat = TimedDecoding(model, torch.randint(300, (1, 7)), new_tokens=5, device="cpu").run(SlowTelemetry())
    assert calls == ["begin prefill", "end prefill", "begin decode", "end decode"]
    assert max(repeat.first_token_s, *repeat.token_s) < 100


def test_figures_by_hand() -> None:
    protocol = InferenceProtocol(prompt_tokens=10, new_tokens=3, batch_size=2, warmup_repeats=1, repeats=2)
    repeats = [Repeat(0.2, [0.1, 0.1], 6), Repeat(0.2, [0.2, 0.2], 6)]
    figures = latency_figures(repeats, protocol)
    assert figures["latency_ms"] == pytest.approx(500)
    assert figures["throughput_tokens_per_s"] == pytest.approx(12 / 1.0)
    assert figures["decode_tokens_per_s"] == pytest.approx(8 / 0.6)
    assert figures["prefill_tokens_per_s"] == pytest.approx(40 / 0.4)
    assert figures["token_ms_p50"] == pytest.approx(150)
    # Two values 400 and 600: mean 500, t(1) = 12.706, standard error 100.
    assert figures["latency_ms_ci95"] == pytest.approx([500 - 1270.62, 500 + 1270.62], rel=1e-4)


def test_the_stage_writes_figures_and_reasons(builder: Any) -> None:
    artifact = builder.build("profile", "llama-1m.bfloat16")
    profile = artifact.json("profile.json")
    protocol = builder.graph.study.inference
    assert profile["figures"]["generated_tokens"] == protocol.repeats * protocol.new_tokens
    for window in ("inference", "prefill", "decode"):
        summary = profile["telemetry"][window]
        assert summary["windows"] == protocol.repeats
        empty = {key for key, value in summary.items() if value is None and key != "reason"}
        assert empty == set(summary["reasons"])
    assert profile["telemetry"]["inference"]["memory_host_avg_gb"] > 0.05
    repeats = json.loads((artifact.directory / "records" / "repeats.json").read_text())["repeats"]
    assert len(repeats) == protocol.repeats
    assert (artifact.directory / "records" / "telemetry" / "samples.parquet").is_file()


def test_a_workload_longer_than_the_model_is_unsupported(builder: Any, tmp_path: Any) -> None:
    from pathlib import Path

    from effllm.artifact import MANIFEST
    from effllm.profiling.inference import build
    from effllm.stage import run

    spec = builder.graph.spec("profile", "llama-1m.bfloat16")
    spec["config"]["prompt_tokens"] = 512
    model = builder.build("quantize", "llama-1m.bfloat16").directory / MANIFEST
    artifact = run("profile", build, spec=spec, inputs={"model": [Path(model)]}, output=tmp_path / "results/profile/x")
    assert artifact.manifest.status == "unsupported"
    assert "512 positions" in artifact.manifest.reason


def test_too_few_tokens_are_never_reported(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    timed = TimedDecoding(model, torch.randint(300, (1, 7)), new_tokens=5, device="cpu")
    monkeypatch.setattr(model, "generate", lambda prompt, **_: torch.cat([prompt, prompt[:, :2]], 1), raising=False)
    with pytest.raises(CellFailure, match="2 tokens were generated where 5"):
        timed.run()
