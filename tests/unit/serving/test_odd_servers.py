"""Servers that speak the API in ways of their own: what is whole is taken as it is meant, what is not is told."""

import json
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from effllm.errors import EngineError
from effllm.serving.dispatch import Played, play
from effllm.serving.engines.openai import OpenAIEngine
from effllm.serving.engines.server import ServerEngine
from effllm.serving.engines.settings import Served
from effllm.serving.trace import Trace, TracedRequest

WANTED = 6
STREAM = "Content-Type: text/event-stream"
Answer = Callable[[socket.socket, int, int], None]


class _Server(socketserver.ThreadingTCPServer):
    """Answers each connection once, byte by byte as it is told."""

    allow_reuse_address = daemon_threads = True

    def __init__(self, answer: Answer, health: int = 200, models: Any = None, loading: int = 0):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer, self.health, self.loading, self.asked = answer, health, loading, 0
        self.models = {"data": [{"id": "m"}]} if models is None else models

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


class _Handler(socketserver.StreamRequestHandler):
    server: _Server

    def handle(self) -> None:
        path = self.rfile.readline().split()[1].decode()
        length = 0
        while line := self.rfile.readline().strip():
            if line.lower().startswith(b"content-length"):
                length = int(line.split()[1])
        body = self.rfile.read(length)
        server = self.server
        if path == "/health":
            _say(self.connection, server.health, b"")
        elif path == "/v1/models":
            _say(self.connection, 200, json.dumps(server.models).encode())
        elif path == "/v1/completions":
            server.asked += 1
            if server.asked <= server.loading:
                return _say(self.connection, 503, b'{"error": "loading"}')
            asked = json.loads(body)
            server.answer(self.connection, len(asked["prompt"]), asked["max_tokens"])
        else:
            _say(self.connection, 404, b"")


def _say(to: socket.socket, status: int, body: bytes, header: str = "Content-Type: application/json") -> None:
    """By HTTP/1.0: what has no length ends with the connection."""
    to.sendall(f"HTTP/1.0 {status} X\r\n{header}\r\n\r\n".encode() + body)


def _event(text: str = "a", end: str = "\n\n", **more: Any) -> str:
    choice = {"text": text, "finish_reason": more.pop("finish_reason", None)}
    return "data: " + json.dumps({"choices": [choice], **more}) + end


def _usage(prompt: int, tokens: int, end: str = "\n\n") -> str:
    usage = {"prompt_tokens": prompt, "completion_tokens": tokens}
    return "data: " + json.dumps({"choices": [], "usage": usage}) + end


def _commented(to: socket.socket, prompt: int, wanted: int) -> None:
    """With comments, names of events, and another end of line, each line in two segments."""
    _say(to, 200, b": hello\r\n\r\n", STREAM)
    for number in range(wanted):
        reason = "length" if number + 1 == wanted else None
        line = _event(end="\r\n\r\n", finish_reason=reason).encode()
        for part in (b"event: token\r\nid: 1\r\n" + line[:7], line[7:], b": ping\r\n\r\n"):
            to.sendall(part)
            time.sleep(0.001)
    to.sendall((_usage(prompt, wanted, "\r\n\r\n") + "data: [DONE]\r\n\r\n").encode())


def _at_once(to: socket.socket, prompt: int, wanted: int) -> None:
    """All of it in one segment, with empty pieces before and after the text."""
    pieces = _event("") + _event() * wanted + _event("", finish_reason="length")
    _say(to, 200, (pieces + _usage(prompt, wanted) + "data: [DONE]\n\n").encode(), STREAM)


def _bundled(to: socket.socket, prompt: int, wanted: int) -> None:
    """Three tokens a piece, which the usage beside them tells."""
    text = "".join(
        _event("abc", usage={"prompt_tokens": prompt, "completion_tokens": min(done, wanted)})
        for done in range(3, wanted + 3, 3)
    )
    _say(to, 200, (text + _event("", finish_reason="length") + "data: [DONE]\n\n").encode(), STREAM)


def _counted_late(to: socket.socket, prompt: int, wanted: int) -> None:
    """A usage of zeros beside each piece, the true one at the end, as text."""
    nothing = {"prompt_tokens": 0, "completion_tokens": 0}
    text = _event(usage=nothing) * wanted + _event("", finish_reason="length")
    usage = {"prompt_tokens": str(prompt), "completion_tokens": str(wanted)}
    _say(to, 200, (text + "data: " + json.dumps({"choices": [], "usage": usage}) + "\n\n").encode(), STREAM)


def _without_a_reason(to: socket.socket, prompt: int, wanted: int) -> None:
    """Never a finish_reason, and comments for ever after the mark of the end."""
    _say(to, 200, (_event() * wanted + _usage(prompt, wanted) + "data: [DONE]\n\n").encode(), STREAM)
    for _ in range(1000):
        to.sendall(b": ping\n\n")
        time.sleep(0.01)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Callable[..., tuple[OpenAIEngine, _Server]]]:
    servers: list[_Server] = []

    def at(answer: Answer, **settings: Any) -> tuple[OpenAIEngine, _Server]:
        server = _Server(answer, **settings)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
        manifest: Any = None
        what = Served("m.bf16.x", manifest, ("cpu",), 40, tmp_path, tmp_path / "log")
        url = f"http://127.0.0.1:{server.server_address[1]}"
        given = {"kind": "server", "version": "1", "url": url, "served_model": "m", "ready_timeout_s": 2.0}
        return OpenAIEngine(ServerEngine.model_validate(given), what), server

    yield at
    for server in servers:
        server.shutdown()
        server.server_close()


def _play(engine: OpenAIEngine) -> Played:
    requests = tuple(TracedRequest(index, None, (1, 2, 3, 4), WANTED) for index in range(4))
    try:
        engine.start()
        return play(engine, Trace(requests, 2), patience_s=1.0)
    finally:
        engine.stop()


@pytest.mark.parametrize("answer", [_commented, _at_once, _bundled, _counted_late, _without_a_reason])
def test_a_whole_answer_is_taken_as_it_is_meant(served: Any, answer: Answer) -> None:
    engine, _ = served(answer)
    for completion in _play(engine).completions:
        assert completion.error is None and completion.output_tokens == WANTED
        assert completion.token_counts == ((3, 3) if answer is _bundled else (1,) * WANTED)


@pytest.mark.parametrize(
    "settings",
    [{"health": 405}, {"health": 204}, {"loading": 3}, {"models": {"data": [{"id": "m", "owned_by": 5}]}}],
    ids=str,
)
def test_a_server_is_ready_in_its_own_way(served: Any, settings: dict[str, Any]) -> None:
    """Without a health that can be asked, with one that says nothing, and well before it is ready for requests."""
    engine, server = served(_at_once, **settings)
    assert [completion.error for completion in _play(engine).completions] == [None] * 4
    assert server.asked == 5 + settings.get("loading", 0)


def _endless(to: socket.socket, prompt: int, wanted: int) -> None:
    _say(to, 200, b"", STREAM)
    while True:
        to.sendall(_event().encode())
        time.sleep(0.001)


def _says(body: bytes, header: str = "Content-Type: application/json") -> Answer:
    return lambda to, prompt, wanted: _say(to, 200, body, header)


_WHOLE = {"choices": [{"text": "abc", "finish_reason": "length"}], "usage": {"prompt_tokens": 3}}


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (_endless, r"^4 pieces came where 3 were asked for$"),
        (_says(b'{"error": {"message": "no room"}}'), r"^the server answers 200 to a request, with an error: no room$"),
        (_says(b'{"detail": "no"}\n', STREAM), r"^the server answers 200 to a request, with an error: no$"),
        (_says(json.dumps(_WHOLE).encode()), r"answers with application/json, where a stream was asked for"),
        (_says(b'data: {"object": "error", "message": "full"}\n\n', STREAM), r"breaks an answer off: full"),
        (_says(b"data: [DONE]\n\n", STREAM), r"broke an answer off after 0 of 3 tokens"),
        (_says(b'data: {"choices": [], "usage": {"completion_tokens": Infinity}}\n', STREAM), r"is no part of a"),
        (_says(b"data: " + b"[" * 100_000 + b"\n", STREAM), r"is no part of a completion"),
        (_says((_event() * 3 + _event(finish_reason="length")).encode(), STREAM), r"4 pieces came where 3"),
        (_says((_event() * 2 + _event(finish_reason="length")).encode(), STREAM), r"knows stream_options\.include_us"),
    ],
)
def test_what_is_no_answer_is_told_in_a_sentence(served: Any, answer: Answer, sentence: str) -> None:
    engine, _ = served(answer)
    with pytest.raises(EngineError, match=sentence) as told:
        _play(engine)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"health": 500}, r"is not ready after ready_timeout_s 0\.2 s and answers 500 to /health"),
        ({"loading": 10**6}, r"answers 503 to a request: loading"),
        ({"models": {"data": None}}, r"answers 200 to /v1/models, and gives no list of models"),
    ],
)
def test_a_server_that_never_gets_ready_is_told_by_what_it_says(served: Any, settings: Any, sentence: str) -> None:
    engine, _ = served(_at_once, **settings)
    engine._settings = engine._settings.model_copy(update={"ready_timeout_s": 0.2})
    with pytest.raises(EngineError, match=sentence):
        _play(engine)
