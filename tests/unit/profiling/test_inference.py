"""The fixed workload generates what was asked and times it the way its docstrings say."""

import itertools
import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from effllm.errors import CellFailure
from effllm.profiling import inference, schedule
from effllm.profiling.decoding import Generation, TimedDecoding
from effllm.profiling.figures import ModelCost, energy_figures, latency_figures, utilization_figures
from effllm.profiling.images import ImagePrompts
from effllm.profiling.inference import build, check_protocol, measure
from effllm.profiling.schedule import Measured, Warmup, run_schedule, settle
from effllm.results.profile import Latency
from effllm.results.telemetry import TelemetrySummary
from effllm.runtime.artifact import MANIFEST
from effllm.runtime.stage import run
from effllm.stages import STAGES
from effllm.study.evaluation import InferenceProtocol, Workload

WORKLOAD = Workload(prompt_tokens=10, new_tokens=3, batch_size=2)


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


def _protocol(**changes: Any) -> InferenceProtocol:
    settings = {
        "workloads": {"a": {"prompt_tokens": 10, "new_tokens": 3, "batch_size": 2}},
        "idle_s": 0.01,
        "warmup_maximum": 6,
        "repeats": 2,
        "minimum_window_s": 30.0,
        "cooldown_s": 0.0,
        "maximum_relative_interval": 0.05,
    }
    return InferenceProtocol.model_validate(settings | changes)


def test_exactly_the_asked_tokens_are_generated_past_every_end_of_text(model: Any) -> None:
    prompt = torch.randint(300, (3, 7))
    generation = TimedDecoding(model, prompt, new_tokens=5, device="cpu").run()
    assert generation.generated_tokens == 15
    assert len(generation.token_s) == 4
    assert generation.first_token_s > 0


def test_decoding_is_greedy_and_cached_as_a_plain_forward_says(model: Any) -> None:
    prompt = torch.randint(300, (1, 6), generator=torch.Generator().manual_seed(0))
    timed = TimedDecoding(model, prompt, new_tokens=6, device="cpu")
    ids = prompt
    with torch.inference_mode():
        for _ in range(6):
            logits = model(ids).logits[:, -1]
            logits[:, model.config.eos_token_id] = -torch.inf
            ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
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
    generation = TimedDecoding(model, torch.randint(300, (1, 7)), new_tokens=5, device="cpu").run()
    assert generation.first_token_s == pytest.approx(0.1)
    assert generation.token_s == pytest.approx([0.01] * 4)
    assert generation.total_s == pytest.approx(0.14)


def test_too_few_tokens_are_never_reported(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    timed = TimedDecoding(model, torch.randint(300, (1, 7)), new_tokens=5, device="cpu")
    monkeypatch.setattr(model, "generate", lambda prompt, **_: torch.cat([prompt, prompt[:, :2]], 1), raising=False)
    with pytest.raises(CellFailure, match="2 tokens were generated where 5"):
        timed.run()


class _Scripted:
    """A decoding whose generations take scripted times."""

    def __init__(self, seconds: Any):
        self.seconds = iter(seconds)

    def run(self) -> Generation:
        return Generation(next(self.seconds), [], 1)


def test_warm_up_goes_on_until_three_times_agree() -> None:
    warmup = settle(_Scripted([9, 5, 1.05, 1.0, 1.02, 1.0]), _protocol(warmup_maximum=20))
    assert warmup == Warmup([9, 5, 1.05, 1.0, 1.02], True)
    assert settle(_Scripted(itertools.cycle([1, 2])), _protocol()) == Warmup([1, 2, 1, 2, 1, 2], False)


class _Windows:
    """Stands for telemetry: notes the names of windows."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def window(self, name: str) -> Any:
        import contextlib

        self.names.append(name)
        return contextlib.nullcontext()


def test_windows_are_shuffled_by_seed_and_last_as_long_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(schedule.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(schedule.time, "sleep", lambda seconds: None)

    class Ticking(_Scripted):
        def run(self) -> Generation:
            clock[0] += 7
            return Generation(7.0, [], 1)

    protocol = _protocol(repeats=5)
    orders = []
    for seed in (0, 0, 1):
        telemetry = _Windows()
        keys = [("a", "generate"), ("a", "prefill"), ("b", "generate")]
        measured = run_schedule(
            {key: Ticking([]) for key in keys}, protocol.model_copy(update={"seed": seed}), telemetry, "x"
        )
        orders.append(telemetry.names)
        assert {key: len(windows) for key, windows in measured.windows.items()} == dict.fromkeys(keys, 5)
        assert all(len(window) == 5 for windows in measured.windows.values() for window in windows), "30 s of 7 s each"
    assert orders[0] == orders[1] != orders[2]
    assert orders[0] != sorted(orders[0]) and sorted(orders[0]) == sorted(orders[2])


def _latency(**figures: Any) -> Latency:
    """Latencies of which a test says those that matter to it."""
    return latency_figures([[Generation(0.2, [0.1, 0.1], 6)]], WORKLOAD).model_copy(update=figures)


def _summary(**figures: Any) -> TelemetrySummary:
    return TelemetrySummary(
        **{"status": "ok", "reason": None, "windows": 1, "duration_s": 2.0, "reasons": {}} | figures
    )


def test_figures_by_hand() -> None:
    windows = [[Generation(0.2, [0.1, 0.1], 6)], [Generation(0.2, [0.2, 0.2], 6)]]
    figures = latency_figures(windows, WORKLOAD)
    assert figures.latency_ms == pytest.approx(500)
    assert figures.throughput_tokens_per_s == pytest.approx(12 / 1.0)
    assert figures.decode_tokens_per_s == pytest.approx(8 / 0.6)
    assert figures.prefill_tokens_per_s == pytest.approx(40 / 0.4)
    assert figures.token_ms_p50 == pytest.approx(150)
    # Two values 400 and 600: mean 500, t(1) = 12.706, standard error 100.
    assert figures.latency_ms_ci95 == pytest.approx([500 - 1270.62, 500 + 1270.62], rel=1e-4)


def test_energy_by_hand_and_empty_with_reasons() -> None:
    workload = Workload(prompt_tokens=10, new_tokens=5, batch_size=2)
    figures = _latency(generated_tokens=40, generations=4)
    generate, prefill, idle = _summary(energy_j=400.0), _summary(energy_j=60.0), _summary(power_avg_w=50.0)
    result = energy_figures(generate, prefill, idle, figures, 3, workload)
    assert result.energy_j_per_token == 10.0
    assert result.energy_above_idle_j_per_token == pytest.approx((400 - 100) / 40)
    assert result.decode_energy_j_per_token == pytest.approx((400 / 4 - 60 / 3) / (2 * 4))
    assert result.reasons == {}
    nothing = _summary(energy_j=None, power_avg_w=None, reasons=dict.fromkeys(("energy_j", "power_avg_w"), "no meter"))
    empty = energy_figures(nothing, nothing, nothing, figures, 3, workload)
    assert {key: value for key, value in empty if key != "reasons"} == dict.fromkeys(empty.reasons)
    assert set(empty.reasons.values()) == {"no meter"}


def test_utilization_by_hand_on_a_known_device_and_empty_on_another(model: Any) -> None:
    """FLOPs of the prefill counted by torch's own counter; bytes of the cache summed over its tensors."""
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import DynamicCache

    workload = Workload(prompt_tokens=64, new_tokens=2, batch_size=1)
    figures = _latency(prefill_tokens_per_s=6400.0, decode_tokens_per_s=100.0)
    cost = ModelCost(model.config, 10**6, torch.bfloat16, "NVIDIA H200")
    result = utilization_figures(figures, workload, cost)
    prompt = torch.randint(300, (1, 64))
    # The counter sees the products of eager attention, not those inside the CPU's fused kernel.
    eager = AutoModelForCausalLM.from_config(model.config, attn_implementation="eager")
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        eager(prompt, logits_to_keep=1)
    assert result.prefill_flops == pytest.approx(counter.get_total_flops(), rel=0.02)
    cache = DynamicCache()
    model(torch.randint(300, (1, 65)), past_key_values=cache)
    elements = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
    # The input table is not the head's, and a step reads one row of it.
    tied = AutoConfig.for_model(**model.config.to_dict() | {"tie_word_embeddings": True})
    assert result.decode_bytes_per_step == 10**6 + 2 * elements - 2 * model.get_input_embeddings().weight.numel()
    shared = utilization_figures(figures, workload, ModelCost(tied, 10**6, torch.bfloat16, "NVIDIA H200"))
    assert shared.decode_bytes_per_step == 10**6 + 2 * elements
    assert result.prefill_mfu == pytest.approx(result.prefill_flops / 0.01 / 989e12, rel=1e-6)
    assert result.reasons == {}
    unknown = utilization_figures(figures, workload, ModelCost(model.config, 10**6, torch.bfloat16, "a CPU"))
    assert unknown.prefill_mfu is None
    assert unknown.decode_mbu is None
    assert "'a CPU'" in unknown.reasons["prefill_mfu"]


def test_a_wide_interval_is_an_error_and_short_windows_a_warning() -> None:
    measured = Measured({}, {("a", "generate"): Warmup([1.0] * 6, False)})
    figures = _latency(latency_ms=100.0, latency_ms_ci95=[90.0, 110.0])
    findings = check_protocol("a", figures, _protocol(minimum_window_s=1.0), measured)
    assert [(finding.rule, finding.severity) for finding in findings] == [
        ("interval", "error"),
        ("warmup", "warning"),
        ("short_windows", "warning"),
    ]
    narrow = _latency(latency_ms=100.0, latency_ms_ci95=[99.0, 101.0])
    assert check_protocol("a", narrow, _protocol(), Measured({}, {})) == []


def test_the_stage_writes_figures_and_reasons(builder: Any) -> None:
    artifact = builder.build("profile", "llama-1m.bfloat16")
    profile = artifact.json("profile.json")
    protocol = builder.graph.study.inference
    assert list(profile["workloads"]) == sorted(protocol.workloads)
    for id, content in profile["workloads"].items():
        workload = protocol.workloads[id]
        figures = content["figures"]
        tokens = figures["generations"] * workload.new_tokens * workload.batch_size
        assert figures["generated_tokens"] == tokens
        for phase in ("generate", "prefill"):
            summary = content["telemetry"][phase]
            assert summary["windows"] == protocol.repeats
            empty = {key for key, value in summary.items() if value is None and key != "reason"}
            assert empty == set(summary["reasons"])
        for part in ("energy", "utilization"):
            empty = {key for key, value in content[part].items() if value is None}
            assert empty == set(content[part]["reasons"])
        assert content["telemetry"]["generate"]["memory_host_avg_gb"] > 0.05
    generations = json.loads((artifact.directory / "records" / "generations.json").read_text())
    assert {name: len(windows) for name, windows in generations.items()} == {
        f"{id}/{phase}": protocol.repeats for id in protocol.workloads for phase in ("generate", "prefill")
    }
    assert (artifact.directory / "records" / "telemetry" / "samples.parquet").is_file()


def test_a_workload_longer_than_the_model_is_unsupported(builder: Any, tmp_path: Path) -> None:
    spec = builder.graph.spec("profile", "llama-1m.bfloat16")
    spec["config"]["workloads"]["single"]["prompt_tokens"] = 512
    model = builder.build("quantize", "llama-1m.bfloat16").directory / MANIFEST
    artifact = run(
        STAGES["profile"], build, spec=spec, inputs={"model": [model]}, output=tmp_path / "results/profile/x"
    )
    workloads = artifact.json("profile.json")["workloads"]
    assert workloads["single"]["status"] == "unsupported"
    assert "512 positions" in workloads["single"]["reason"]
    assert workloads["single"]["figures"] is None
    assert workloads["batch"]["figures"]["generations"] > 0, "the others are measured"


def test_a_model_that_can_run_no_workload_is_unsupported(model: Any) -> None:
    workloads = {"long": {"prompt_tokens": 4000, "new_tokens": 3}}
    if not torch.cuda.is_available():
        workloads["graph"] = {"prompt_tokens": 10, "new_tokens": 3, "cuda_graph": True}
    with pytest.raises(CellFailure, match=r"workload long: the model has 2048 positions, 4003 are needed") as failure:
        measure(model, _protocol(workloads=workloads), ["cpu"], _Windows(), "x", ImagePrompts(model, None, 0))
    assert failure.value.status == "unsupported"


@pytest.mark.parametrize(
    ("error", "status", "recordings"),
    [
        (CellFailure("unsupported", "a CUDA graph cannot hold the model's step: it asked the host"), "unsupported", 1),
        (torch.cuda.OutOfMemoryError("CUDA out of memory.\nTried to allocate a lot"), "oom", 2),
    ],
)
def test_graphs_that_cannot_be_recorded_leave_the_other_workloads_measured(
    model: Any, monkeypatch: pytest.MonkeyPatch, error: Exception, status: str, recordings: int
) -> None:
    tried = []

    def refuse(*_: Any) -> None:
        tried.append(1)
        raise error

    monkeypatch.setattr(inference, "Graphs", refuse)
    short = {"prompt_tokens": 10, "new_tokens": 3}
    workloads = {"graph": short | {"cuda_graph": True}, "a": short, "again": short | {"cuda_graph": True}}
    protocol = _protocol(workloads=workloads, minimum_window_s=0.01)
    measured, refused = measure(model, protocol, ["cpu"], _Windows(), "x", ImagePrompts(model, None, 0))
    assert set(measured.windows) == {("a", "generate"), ("a", "prefill")}
    assert {id: failure.status for id, failure in refused.items()} == {"graph": status, "again": status}
    assert refused["again"].reason == str(error).splitlines()[0]
    assert len(tried) == recordings, "what a model cannot do it is not asked twice"


def test_the_shuffle_is_of_the_standard_library() -> None:
    """Orders of published runs can be recomputed from the seed."""
    order = [1, 2, 3, 4, 5]
    random.Random(0).shuffle(order)
    assert order == [3, 2, 1, 5, 4]
