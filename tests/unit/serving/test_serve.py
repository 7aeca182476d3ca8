"""Stage `serve` and its engine in process."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM

from effllm.errors import CellFailure, EngineError
from effllm.models.greedy import decode_greedily
from effllm.results.serving import CompletedRequests, Serving
from effllm.runtime.artifact import MANIFEST, Artifact
from effllm.runtime.stage import run
from effllm.serving import protocol
from effllm.serving.dispatch import play
from effllm.serving.engines import continuous, varlen
from effllm.serving.engines.continuous import ContinuousEngine
from effllm.serving.engines.transformers import TransformersEngine
from effllm.serving.serve import build
from effllm.serving.settings import Serving as Settings
from effllm.serving.synthesis import make_trace
from effllm.serving.trace import Trace
from effllm.stages import STAGES
from tests.unit.serving.conftest import WORDS, small_model

SETTINGS: dict[str, Any] = {
    "engine": {"kind": "transformers", "num_blocks": 64, "page_size": 8, "max_batch_tokens": 64},
    "load": {
        "arrivals": {"kind": "poisson"},
        "prompt_tokens": {"kind": "uniform", "least": 6, "most": 20},
        "output_tokens": {"kind": "fixed", "tokens": 8},
    },
    "saturation": {"concurrency": 2, "maximum_concurrency": 2, "rounds": 3},
    "fractions": [0.5, 0.9],
    "requests": 12,
    "warmup_requests": 2,
    "compared_requests": 3,
    "idle_s": 0.05,
    "cooldown_s": 0.0,
    "sample_period_s": 0.05,
}


def _engine(blocks: int) -> ContinuousEngine:
    model = small_model()
    decode_greedily(model, None)
    settings = TransformersEngine(kind="transformers", num_blocks=blocks, page_size=8, max_batch_tokens=64)
    return ContinuousEngine(settings, model)


@pytest.mark.parametrize("blocks", [64, 9], ids=["room", "interrupted"])
def test_requests_served_together_get_what_each_gets_alone(blocks: int) -> None:
    """In float32 to the token, past every end of text, and where the cache is so small that requests are put back."""
    engine = _engine(blocks)
    load = Settings.model_validate(SETTINGS).load
    trace = make_trace(load, 10, WORDS, 0, concurrency=5)
    alone = [engine.alone(request) for request in trace.requests]
    assert len(set(alone)) > 5, "it says different things"
    engine.start()
    try:
        together = play(engine, trace)
        spread = play(engine, make_trace(load, 10, WORDS, 0, rate_per_s=50.0))
        usage = engine.usage()
    finally:
        engine.stop()
    for played in (together, spread):
        assert [completion.tokens for completion in played.completions] == alone
        for completion in played.completions:
            assert completion.error is None
            times = completion.token_times_s
            assert len(times) == 8 and list(times) == sorted(times) and times[0] > completion.dispatched_s
    assert usage.preemptions is not None and (usage.preemptions > 0) == (blocks == 9)
    assert usage.running == 0
    assert max(sample.usage.running or 0 for sample in together.usage) <= 5
    with pytest.raises(EngineError, match="was stopped"):
        engine.submit(trace.requests[0])


def test_a_cache_of_so_many_bytes_has_as_many_pages_as_fit() -> None:
    """Two layers, keys and values of two heads of eight numbers, in float32: 256 bytes a token, 2,048 a page."""
    settings = TransformersEngine(kind="transformers", cache_gb=50 * 2048e-9, page_size=8, max_batch_tokens=64)
    model = small_model()
    decode_greedily(model, None)
    engine = ContinuousEngine(settings, model, longest=20)
    try:
        engine.start()
        stored = engine._manager.batch_processor.cache.cache_tensor.numel()  # type: ignore[union-attr]
        assert engine.description.flags["num_blocks"] == 50
    finally:
        engine.stop()
    assert stored == 52 * 2048, "two pages are the library's own"
    with pytest.raises(CellFailure, match=r"cache_gb 0\.0001024 holds less than a request of 400 tokens"):
        settings.blocks(256, 400)
    with pytest.raises(ValidationError, match="either num_blocks or cache_gb"):
        TransformersEngine(kind="transformers", max_batch_tokens=64)


def test_sequences_attend_to_themselves_by_their_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel needs a GPU; in its place, by what it is told of lengths, stands attention sequence by sequence."""

    def by_sequence(query: Any, key: Any, value: Any, ends: Any, longest: Any, scale: float) -> Any:
        parts = []
        for begin_q, end_q, begin_k, end_k in zip(ends[0], ends[0][1:], ends[1], ends[1][1:], strict=False):
            assert end_q - begin_q <= longest[0] and end_k - begin_k <= longest[1]
            # The last token of a sequence sees all of its keys, which begin with those of the cache.
            seen = torch.ones(end_q - begin_q, end_k - begin_k, dtype=torch.bool).tril(
                end_k - begin_k - end_q + begin_q
            )
            heads = [t.transpose(0, 1) for t in (query[begin_q:end_q], key[begin_k:end_k], value[begin_k:end_k])]
            out = scaled_dot_product_attention(*heads, attn_mask=seen, scale=scale, enable_gqa=True)
            parts.append(out.transpose(0, 1))
        return torch.cat(parts)

    def use(model: Any) -> None:
        AttentionInterface.register(varlen.VARLEN, varlen.attend)
        model.config._attn_implementation = varlen.VARLEN

    model = small_model()
    decode_greedily(model, None)
    settings = TransformersEngine(
        kind="transformers", num_blocks=64, page_size=8, max_batch_tokens=64, flash_attention="varlen"
    )
    refusing = ContinuousEngine(settings, model)
    with pytest.raises(CellFailure, match=r"runs in 16 bits on an NVIDIA GPU, .* and this is float32 on cpu"):
        refusing.start()
    monkeypatch.setattr(varlen, "_by_sequence", by_sequence)
    monkeypatch.setattr(continuous, "use_varlen", use)
    engine = ContinuousEngine(settings, model)
    trace = make_trace(Settings.model_validate(SETTINGS).load, 8, WORDS, 0, concurrency=4)
    alone = [engine.alone(request) for request in trace.requests]
    engine.start()
    try:
        played = play(engine, trace)
        assert engine.description.flags["attention"] == varlen.VARLEN
    finally:
        engine.stop()
    assert [completion.tokens for completion in played.completions] == alone


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ({"model_type": "mamba", "state_size": 4}, "MambaForCausalLM does not attend by Transformers' interface"),
        # Heads of 12 for keys, of 8 for values.
        (
            {"model_type": "deepseek_v3", "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8}
            | {"num_attention_heads": 2, "num_key_value_heads": 2, "q_lora_rank": 8, "kv_lora_rank": 8}
            | {"intermediate_size": 16, "first_k_dense_replace": 1},
            "continuous batching fails on the model",
        ),
    ],
)
def test_a_model_without_a_paged_cache_is_unsupported(shape: dict[str, Any], said: str) -> None:
    """And never gets tokens that are mixed of several requests."""
    config = AutoConfig.for_model(**shape, hidden_size=16, num_hidden_layers=1, vocab_size=WORDS)
    settings = TransformersEngine(kind="transformers", num_blocks=8, page_size=8, max_batch_tokens=64)
    engine = ContinuousEngine(settings, AutoModelForCausalLM.from_config(config))
    with pytest.raises(CellFailure, match=said) as failure:
        engine.start()
    assert failure.value.status == "unsupported"
    engine.stop()


def _serve(variant: Artifact, output: Path, **changes: Any) -> Artifact:
    config = Settings.model_validate(SETTINGS | changes).plain()
    spec = {"stage": "serve", "version": STAGES["serve"].version, "config": config}
    return run(STAGES["serve"], build, spec=spec, inputs={"model": [variant.directory / MANIFEST]}, output=output)


def test_a_stage_that_was_killed_goes_on_at_the_next_rate(
    variant: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []
    measure = protocol.measure

    def once(engine: Any, load: Any, *rest: Any) -> Any:
        if load.id == "0.9" and "0.9" not in measured:
            measured.append("0.9")
            raise KeyboardInterrupt
        measured.append(load.id)
        return measure(engine, load, *rest)

    monkeypatch.setattr(protocol, "measure", once)
    output = tmp_path / "results" / "serve" / "small.bfloat16.short"
    with pytest.raises(KeyboardInterrupt):
        _serve(variant, output)
    before = len(measured)
    artifact = _serve(variant, output)
    assert measured[before:] == ["0.9"]
    served = Serving.read(artifact.directory)
    assert artifact.manifest.status == "ok"
    assert list(served.loads) == ["0.5", "0.9", "saturated"]
    assert served.saturated_requests_per_s == max(step.requests_per_s for step in served.saturation)
    assert served.greedy.requests == 3 and served.greedy.first_identical == 3
    assert served.engine.dtype == "bfloat16" and served.engine.flags["num_blocks"] == 64
    completions = CompletedRequests.read(artifact.directory).root
    for id, load in served.loads.items():
        trace = Trace.read(artifact.directory / "traces" / f"{_trace_of(id, served)}.jsonl")
        assert len(completions[id]) == len(trace.requests)
        figures = load.figures
        assert figures is not None and figures.requests == len(trace.requests) - load.warmup_requests
        assert load.errors == {} and load.telemetry.duration_s > 0
        # The window begins once the last request of the warm-up was sent: all tokens of those after it are in it.
        counted = 8 * figures.requests
        assert counted <= load.window_output_tokens <= counted + 8 * load.warmup_requests
        assert any(finding.rule == "saturation" for finding in load.findings), "one loop alone shows no plateau"
        for part in (load.energy, load.engine):
            assert {key for key, value in part.model_dump().items() if value is None} == set(part.reasons)
        if load.fraction is not None:
            assert load.requests_per_s == pytest.approx(load.fraction * served.saturated_requests_per_s)
            assert [r.scheduled_s for r in trace.requests] == pytest.approx(
                [request.scheduled_s for request in completions[id]], abs=1e-5
            )
    assert (artifact.directory / "records" / "telemetry" / "0.9" / "samples.parquet").is_file()
    latencies = json.loads((artifact.directory / "requests.json").read_text())
    assert {id: len(columns["e2e_ms"]) for id, columns in latencies.items()} == {"0.5": 12, "0.9": 12, "saturated": 4}


def test_the_requests_of_a_trace_are_sent_again(variant: Artifact, tmp_path: Path) -> None:
    """To the byte, and the load has the rate at which they came."""
    path = tmp_path / "0.9.jsonl"
    written = make_trace(Settings.model_validate(SETTINGS).load, 14, WORDS, 3, rate_per_s=40.0)
    written.write(path)
    trace = {"format": "effllm", "path": str(path), "most_prompt_tokens": 20, "most_output_tokens": 8}
    load = {"arrivals": {"kind": "replayed"}, "trace": trace}
    again = _serve(variant, tmp_path / "results" / "serve" / "small.bfloat16.again", load=load, saturation=None)
    served = Serving.read(again.directory)
    assert (again.manifest.status, list(served.loads), served.saturation) == ("ok", ["replayed"], [])
    assert (again.directory / "traces" / "replayed.jsonl").read_bytes() == path.read_bytes()
    replayed = served.loads["replayed"]
    assert replayed.requests_per_s == written.rate_per_s and replayed.concurrency is None
    assert replayed.figures is not None and replayed.figures.completed == 12


def _trace_of(id: str, served: Serving) -> str:
    return f"closed-{served.loads[id].concurrency}" if id == "saturated" else id


def test_an_engine_that_ends_leaves_a_reason(
    variant: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = []

    class Failing(ContinuousEngine):
        def events(self, timeout_s: float) -> Any:
            raise EngineError("the engine has ended: no block is left")

        def stop(self) -> None:
            stopped.append(1)
            super().stop()

    monkeypatch.setattr("effllm.serving.engines.continuous.ContinuousEngine", Failing)
    artifact = _serve(variant, tmp_path / "results" / "serve" / "small.bfloat16.failing")
    assert (artifact.manifest.status, artifact.manifest.reason) == ("invalid", "the engine has ended: no block is left")
    assert stopped == [1]
    artifact = _serve(
        variant,
        tmp_path / "results" / "serve" / "small.bfloat16.long",
        load=SETTINGS["load"] | {"prompt_tokens": {"kind": "fixed", "tokens": 200}},
    )
    assert artifact.manifest.status == "unsupported"
    assert artifact.manifest.reason == "the model has 128 positions, 208 are needed"
