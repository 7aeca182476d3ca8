"""The client of servers with the API of OpenAI, and the life of a server that the stage starts."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydantic import ValidationError

from effllm.errors import CellFailure, EngineError, UserError
from effllm.results.serving import Serving as Result
from effllm.runtime.artifact import MANIFEST, Artifact
from effllm.runtime.stage import run
from effllm.serving.dispatch import play
from effllm.serving.engine import EngineUsage
from effllm.serving.engines.completions import Answer
from effllm.serving.engines.openai import OpenAIEngine
from effllm.serving.engines.prometheus import usage_of
from effllm.serving.engines.server import ServerEngine
from effllm.serving.engines.settings import Served
from effllm.serving.serve import build
from effllm.serving.settings import Serving
from effllm.serving.trace import Trace, TracedRequest
from effllm.stages import STAGES
from tests.unit.serving.fake_server import KEY, METRICS, Server

FAKE = str(Path(__file__).with_name("fake_server.py"))
MODEL = "the-model"
COMMAND = [sys.executable, "-S", FAKE, "{port}", "{model}"]


def _served(tmp_path: Path) -> Served:
    manifest: Any = None
    artifact = Artifact(tmp_path, manifest, "")
    return Served("llama.bfloat16.chat", artifact, ("cpu",), 40, tmp_path, tmp_path / "records" / "server.log")


def _engine(tmp_path: Path, **settings: Any) -> OpenAIEngine:
    return OpenAIEngine(
        ServerEngine.model_validate({"kind": "server", "version": "9.9", **settings}), _served(tmp_path)
    )


def _started(tmp_path: Path, *faults: str, **settings: Any) -> OpenAIEngine:
    return _engine(tmp_path, command=[*COMMAND, *faults], **settings)


def _closed(requests: int, tokens: int = 8, concurrency: int = 4) -> Trace:
    traced = [TracedRequest(index, None, (index + 1, 7), tokens) for index in range(requests)]
    return Trace(tuple(traced), concurrency)


class _At:
    """A server in this process, at a URL."""

    def __init__(self, tmp_path: Path):
        self.tmp_path, self.running = tmp_path, list[Server]()

    def __call__(self, *faults: str, **settings: Any) -> OpenAIEngine:
        server = Server(0, MODEL, *faults)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        self.running.append(server)
        return _engine(self.tmp_path, url=server.url, served_model=MODEL, **settings)


@pytest.fixture
def at(tmp_path: Path) -> Iterator[_At]:
    made = _At(tmp_path)
    yield made
    for server in made.running:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("faults", "counted_by"), [((), "ids"), (("plain",), "pieces"), (("plain", "swallows"), "pieces")]
)
def test_many_streams_at_once_arrive_whole(at: _At, faults: tuple[str, ...], counted_by: str) -> None:
    """Ids where the server gives them, counts in any case, on connections that are kept."""
    engine = at(*faults)
    engine.start()
    try:
        played = play(engine, _closed(40, concurrency=8))
        usage = engine.usage()
    finally:
        engine.stop()
    for index, completion in enumerate(played.completions):
        assert completion.error is None and completion.output_tokens == 8
        assert completion.tokens == (tuple(range(index + 8, index + 16)) if counted_by == "ids" else None)
        assert sum(completion.token_counts) == 8
        assert completion.dispatched_s < completion.token_times_s[0] <= completion.token_times_s[-1]
    (server,) = at.running
    assert len(server.bodies) == 41 and len(server.connections) <= 20, "connections are kept"
    (body,) = [body for body in server.bodies if body["prompt"] == [40, 7]]
    assert (body["max_tokens"], body["min_tokens"], body["ignore_eos"], body["temperature"]) == (8, 8, True, 0)
    assert engine.description.flags["counted_by"] == counted_by
    assert engine.description.version == "fake 9.9"
    assert usage == (EngineUsage() if "plain" in faults else EngineUsage(0.25, 3, 2, 7))
    with pytest.raises(EngineError, match="stopped"):
        engine.submit(played and _closed(1).requests[0])


@pytest.mark.parametrize(
    ("fault", "error", "sentence"),
    [
        ("strict", UserError, r"engine\.omit: the server answers 422 to ignore_eos, min_tokens .* list it there \(out"),
        ("text", UserError, r"takes no prompts of token ids \(it answers 400: prompt must be a string\)"),
        ("another", UserError, r"serves 'another', not the-model; start it on that model"),
        ("short", UserError, r"takes 16 tokens of prompt and output, and requests have up to 40"),
        ("key", UserError, r"wants a key, or another \(401\); name the environment variable"),
        ("plain uncounted", EngineError, r"gives no usage of tokens"),
        ("bos", EngineError, r"counts 4 tokens of a prompt of 3"),
        ("html", EngineError, r"answers with text/html, where a stream was asked for"),
        ("moved", UserError, r"answers 307 to a request of three tokens: elsewhere"),
        ("never", EngineError, r"is not ready after ready_timeout_s 0.3 s"),
    ],
)
def test_a_server_that_is_not_as_asked_is_told_before_the_load(
    at: _At, fault: str, error: type[Exception], sentence: str
) -> None:
    engine = at(*fault.split(), ready_timeout_s=0.3)
    try:
        with pytest.raises(error, match=sentence):
            engine.start()
    finally:
        engine.stop()


def test_parameters_that_are_refused_can_be_omitted(at: _At) -> None:
    engine = at("strict", omit=["ignore_eos", "min_tokens"], body={"top_k": 1})
    engine.start()
    engine.stop()
    assert not {"ignore_eos", "min_tokens"} & set(at.running[0].bodies[0])
    assert at.running[0].bodies[0]["top_k"] == 1


def test_another_version_or_no_server_is_refused(at: _At, tmp_path: Path) -> None:
    engine = at()
    at.running[0].version = "10.0"
    with pytest.raises(UserError, match=r"engine\.version: the server says that it is 10\.0, the study '9\.9'"):
        engine.start()
    engine.stop()
    nobody = _engine(tmp_path, url="http://127.0.0.1:9", served_model=MODEL)
    with pytest.raises(UserError, match=r"nothing answers at http://127\.0\.0\.1:9; start the server"):
        nobody.start()
    nobody.stop()
    missing = _engine(tmp_path, command=["/no/vllm", "{model}", "{port}"])
    with pytest.raises(UserError, match=r"/no/vllm is no program that can be run"):
        missing.start()
    missing.stop()


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("fails", "the server answers 500 to a request: boom, ***"),
        ("breaks", "broke off after 1 of 8 tokens"),
        ("early", "7 tokens came where 8 were asked for"),
        ("more", "9 tokens came where 8 were asked for"),
        ("stops", "broke an answer off after 1 of 8 tokens"),
        ("half", "broke an answer off after 1 of 8 tokens"),
        ("garbles", "which is no part of a completion"),
        ("busy", "answers 429 to a request: Too many requests"),
        ("binary", "answers 500 to a request"),
    ],
)
def test_a_request_that_fails_says_why(at: _At, monkeypatch: pytest.MonkeyPatch, fault: str, sentence: str) -> None:
    monkeypatch.setenv("FAKE_KEY", KEY)
    engine = at(fault, api_key_variable="FAKE_KEY")
    engine.start()
    try:
        played = play(engine, _closed(2, concurrency=2))
    finally:
        engine.stop()
    for completion in played.completions:
        assert completion.error is not None and sentence in completion.error


@pytest.mark.parametrize("fault", ["undone", "open"])
def test_an_answer_is_whole_whether_its_stream_ends_or_not(at: _At, fault: str) -> None:
    """Without the mark of the end, or with it and a connection that stays open."""
    engine = at(fault)
    engine.start()
    try:
        played = play(engine, _closed(2, concurrency=2), patience_s=2)
    finally:
        engine.stop()
    assert [completion.error for completion in played.completions] == [None, None]


def test_a_server_that_hangs_is_given_up(at: _At) -> None:
    engine = at("hangs")
    engine.start()
    try:
        with pytest.raises(EngineError, match=r"no token for patience_s 0\.3 s with 1 requests under way"):
            play(engine, _closed(1), patience_s=0.3)
    finally:
        start = time.monotonic()
        engine.stop()
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("fault", "error", "sentence"),
    [
        ("refuses", EngineError, r"the server ended with code 1: ValueError: unknown architecture"),
        ("leaves", EngineError, r"the server ended with code 0 without a word"),
        ("memory", CellFailure, r"CUDA out of memory"),
        ("dies", EngineError, r"the server ended with code 3: RuntimeError: the sky fell"),
    ],
)
def test_a_server_that_ends_is_told_by_its_last_words(
    tmp_path: Path, fault: str, error: type[Exception], sentence: str
) -> None:
    engine = _started(tmp_path, fault)
    try:
        with pytest.raises(error, match=sentence):
            engine.start()
            play(engine, _closed(3))
    finally:
        engine.stop()


def test_a_server_is_started_and_ended_with_what_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that left its group and ignores SIGTERM too; the port is free and the key in no log."""
    monkeypatch.setenv("FAKE_KEY", KEY)
    monkeypatch.setattr("effllm.serving.engines.process._GRACE_S", 0.2)
    engine = _started(tmp_path, "children", "key", "slow", api_key_variable="FAKE_KEY")
    engine.start()
    port = int(engine._url.rpartition(":")[2])
    assert play(engine, _closed(2)).completions[1].tokens == tuple(range(9, 17))
    log = tmp_path / "records" / "server.log"
    child = int(log.read_text().split()[1].rstrip(","))
    assert psutil.pid_exists(child)
    engine.stop()
    assert not psutil.pid_exists(child)
    assert "key ***" in log.read_text() and KEY not in log.read_text()
    with socket.socket() as free:
        free.bind(("127.0.0.1", port))
    engine.stop()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_stage_that_is_killed_takes_its_server_along(tmp_path: Path, number: int) -> None:
    """And a lock of the run is held until the server has ended."""
    code = (
        "import sys, time; from pathlib import Path; from effllm.serving.engines import process\n"
        "process._GRACE_S = 0.2\n"
        f"process.ServerProcess({[*COMMAND[:3], '0', MODEL, 'children']!r}, {{}}, Path(sys.argv[1]))\n"
        "print('started', flush=True); time.sleep(60)"
    )
    log = tmp_path / "server.log"
    reading, writing = os.pipe()
    stage = subprocess.Popen(
        [sys.executable, "-c", code, str(log)], stdout=subprocess.PIPE, pass_fds=(writing,), env={**os.environ}
    )
    os.close(writing)
    assert stage.stdout is not None and stage.stdout.readline() == b"started\n"
    while not log.is_file() or "child" not in log.read_text():
        time.sleep(0.02)
    child = int(log.read_text().split()[1].rstrip(","))
    stage.send_signal(number)
    stage.wait()
    # The end of the pipe that the guard inherited closes when it has ended.
    assert os.read(reading, 1) == b""
    os.close(reading)
    stage.stdout.close()
    assert not psutil.pid_exists(child)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"url": "http://example.org:8000"}, "is not on loopback"),
        ({"url": "http://127.0.0.1.example.org:8000"}, "is not on loopback"),
        ({"url": "https://127.0.0.1:8000"}, "is no address of a server"),
        ({"url": "http://127.0.0.1:8000/v1"}, "without a path"),
        ({}, "state one of them"),
        ({"url": "http://127.0.0.1:8000", "command": COMMAND}, "state one of them"),
        ({"command": ["vllm", "serve", "{model}"]}, r"\{port\} does not occur in it"),
        ({"command": COMMAND, "environment": {"HF_TOKEN": "x"}}, "would be kept in every result"),
        ({"command": COMMAND, "omit": ["stream"]}, "continuous_usage_stats"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        ServerEngine.model_validate({"kind": "server", "version": "1", **settings})


def test_metrics_of_several_engines_are_added_and_absent_ones_unknown() -> None:
    both = METRICS + METRICS.replace('engine="0"', 'engine="1"').replace("0.25", "0.75")
    assert usage_of(both) == EngineUsage(0.5, 6, 4, 14)
    assert usage_of("process_open_fds 1\nsglang:token_usage 0.5\nsglang:num_running_reqs 1\n") == EngineUsage(0.5, 1)
    assert usage_of("vllm:num_requests_running nonsense\n") == EngineUsage()


def test_an_answer_is_counted_by_usage_where_there_are_no_ids() -> None:
    """Of several tokens in a piece, cut anywhere, with another end of line."""
    text = (
        b'data: {"choices":[{"text":"a"}],"usage":{"prompt_tokens":2,"completion_tokens":3}}\r\n\r\n: comment\r\n'
        b'data: {"choices":[{"text":"","finish_reason":"length"}],'
        b'"usage":{"prompt_tokens":2,"completion_tokens":4}}\n\n'
        b"data: [DONE]\n\n"
    )
    for cut in range(0, len(text), 7):
        answer = Answer(TracedRequest(0, None, (1, 2), 4))
        pieces = answer.feed(text[:cut]) + answer.feed(text[cut:])
        assert [piece.count for piece in pieces] == [3, 1]
        assert answer.rest() is None and answer.counted_by == "usage"
    with pytest.raises(EngineError, match="broke an answer off after 3 of 4 tokens"):
        answer = Answer(TracedRequest(0, None, (1, 2), 4))
        answer.feed(text[:90])
        answer.rest()
    with pytest.raises(EngineError, match="breaks an answer off: no memory"):
        Answer(answer.request).feed(b'data: {"error": {"message": "no memory"}}\n')
    with pytest.raises(EngineError, match="is no part of a completion"):
        Answer(answer.request).feed(b"data: <html>\n")


@pytest.mark.parametrize(("faults", "status"), [((), "ok"), (("dies",), "invalid")], ids=["whole", "dies"])
def test_the_stage_serves_by_a_server_and_keeps_its_log(
    variant: Artifact, tmp_path: Path, faults: tuple[str, ...], status: str
) -> None:
    """No row without its reason, and no process left."""
    config = Serving.model_validate(
        {
            "engine": {"kind": "server", "version": "9.9", "command": [*COMMAND, *faults]},
            "load": {
                "arrivals": {"kind": "closed_loop", "concurrency": 2},
                "prompt_tokens": {"kind": "fixed", "tokens": 6},
                "output_tokens": {"kind": "fixed", "tokens": 8},
            },
            "requests": 12,
            "warmup_requests": 2,
            "compared_requests": 3,
            "idle_s": 0.05,
            "cooldown_s": 0.0,
            "sample_period_s": 0.05,
        }
    )
    stage = STAGES["serve"]
    spec = {"stage": "serve", "version": stage.version, "config": config.plain()}
    output = tmp_path / "results" / "serve" / "small.bfloat16.server"
    before = psutil.Process().children()
    artifact = run(stage, build, spec=spec, inputs={"model": [variant.directory / MANIFEST]}, output=output)
    assert (artifact.directory / "records" / "server.log").is_file()
    assert psutil.Process().children() == before
    assert artifact.manifest.status == status
    if status == "invalid":
        assert artifact.manifest.reason == "the server ended with code 3: RuntimeError: the sky fell"
        return
    served = Result.read(artifact.directory)
    assert (served.greedy.against, served.greedy.requests, served.greedy.identical) == ("the engine, one by one", 3, 3)
    assert served.engine.version == "fake 9.9" and not served.engine.in_process
    load = served.loads["closed"]
    assert load.errors == {} and load.figures is not None and load.figures.completed == 12
    assert load.engine.cache_peak_fraction == 0.25 and load.engine.preemptions == 0
