"""Traces as files, and how they are played."""

from collections.abc import Callable
from pathlib import Path

import pytest

from effllm.errors import EngineError, UserError
from effllm.serving.dispatch import play
from effllm.serving.engine import TokenEvent
from effllm.serving.trace import Trace, TracedRequest
from tests.unit.serving.scripted import ScriptedClock, ScriptedEngine


def _open(*times_s: float, output_tokens: int = 3) -> Trace:
    return Trace(tuple(TracedRequest(i, t, (7, 8), output_tokens) for i, t in enumerate(times_s)))


def test_a_trace_is_read_as_it_was_written(tmp_path: Path) -> None:
    path, again = tmp_path / "trace.jsonl", tmp_path / "again.jsonl"
    for trace in (_open(0.1, 1 / 3, 2.0), Trace((TracedRequest(0, None, (1,), 4),), concurrency=2)):
        trace.write(path)
        assert Trace.read(path) == trace
        Trace.read(path).write(again)
        assert path.read_bytes() == again.read_bytes()


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (lambda lines: lines[:-1], "1 of 2 requests"),
        (lambda lines: [lines[0], lines[2], lines[1]], "index 1"),
        (lambda lines: [lines[0], lines[1].replace("[7,8]", "[]"), lines[2]], "prompt"),
        (lambda lines: [lines[0], lines[1], lines[2].replace("1.5", "-1")], "before"),
        (lambda lines: ["half a line"], "not a whole trace"),
        (lambda lines: [], "it is empty"),
        (lambda lines: ["[]", *lines[1:]], "not a whole trace"),
        (lambda lines: [lines[0], lines[1], lines[2].replace("[7,8]", '"78"')], "line 3: prompt: "),
        (lambda lines: [lines[0], lines[1].replace(":3,", ":3.5,"), lines[2]], "line 2: output_tokens: "),
        (lambda lines: [lines[0], lines[1].replace("0.5", "1" + "0" * 400), lines[2]], "line 2: scheduled_s: "),
        (lambda lines: [lines[0].replace("null", "true"), *lines[1:]], "concurrency: "),
    ],
)
def test_a_damaged_trace_is_refused(tmp_path: Path, broken: Callable[[list[str]], list[str]], said: str) -> None:
    path = tmp_path / "trace.jsonl"
    _open(0.5, 1.5).write(path)
    path.write_text("\n".join(broken(path.read_text().splitlines())))
    with pytest.raises(UserError, match=said):
        Trace.read(path)


def test_requests_of_an_open_loop_are_sent_at_their_times() -> None:
    clock = ScriptedClock()
    played = play(ScriptedEngine(clock, places=1), _open(0.5, 1.0, 20.0), clock)
    # Each token takes a second, and the second request waits for the first: its times count from when it was due.
    assert [c.dispatched_s for c in played.completions] == pytest.approx([0.5, 1.0, 20.0])
    assert [c.dispatch_lag_s for c in played.completions] == pytest.approx([0, 0, 0])
    assert [c.token_times_s for c in played.completions] == [
        pytest.approx((1.5, 2.5, 3.5)),
        pytest.approx((4.5, 5.5, 6.5)),
        pytest.approx((21.0, 22.0, 23.0)),
    ]
    assert [c.tokens for c in played.completions] == [(0, 1, 2)] * 3
    assert played.duration_s == pytest.approx(23.0)
    assert {c.error for c in played.completions} == {None}
    assert max(sample.usage.cache_fraction or 0 for sample in played.usage) == 1


def test_a_closed_loop_keeps_its_concurrency() -> None:
    clock = ScriptedClock()
    engine = ScriptedEngine(clock)
    requests = tuple(TracedRequest(i, None, (1,), 2) for i in range(7))
    played = play(engine, Trace(requests, concurrency=3), clock)
    assert engine.most_active == 3
    assert [c.dispatched_s for c in played.completions] == pytest.approx([0, 0, 0, 2, 2, 2, 4])
    assert [c.scheduled_s for c in played.completions] == [c.dispatched_s for c in played.completions]


def test_errors_and_wrong_lengths_are_told() -> None:
    clock = ScriptedClock()
    engine = ScriptedEngine(clock)
    answers = [TokenEvent(0, 101.0, (5,), True), TokenEvent(1, 101.0, (), True, "the server answers 500")]
    engine.events = lambda timeout_s: answers  # type: ignore[method-assign]
    played = play(engine, _open(0.0, 0.0), clock)
    assert [c.error for c in played.completions] == [
        "1 tokens came where 3 were asked for",
        "the server answers 500",
    ]


def test_an_engine_that_hangs_is_left() -> None:
    clock = ScriptedClock()
    engine = ScriptedEngine(clock)
    engine.silent = True
    with pytest.raises(EngineError, match="no token for patience_s 5 s with 1 requests"):
        play(engine, _open(30.0), clock, patience_s=5)
    assert clock.now() == pytest.approx(135.0, abs=1)
