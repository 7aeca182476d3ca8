"""The client of a server with the API of OpenAI: many streams of tokens at once, by one thread of their own."""

import asyncio
import contextlib
import json
import os
import queue
import threading
import time
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import aiohttp

from effllm.errors import EngineError, UserError, reason_of
from effllm.fields import shortened
from effllm.serving.engine import EngineDescription, EngineUsage, TokenEvent
from effllm.serving.engines.completions import LOST, Answer, message_of, refused_parameters, request_body
from effllm.serving.engines.process import ServerProcess, free_port
from effllm.serving.engines.prometheus import usage_of
from effllm.serving.engines.settings import Served
from effllm.serving.trace import TracedRequest

if TYPE_CHECKING:
    from effllm.serving.engines.server import ServerEngine

# Servers of uvicorn close a connection that is idle for 5 s.
_IDLE_S = 2.0
_PERIOD_S = 0.2
_QUICK_S = 10.0
_METRICS_PERIOD_S = 0.5
# How long the end of a stream is waited for that has said it is over: a connection that has ended can be used again.
_LAST_S = 0.2
_STREAM = "text/event-stream"
# Statuses of a server that is well, of one that has no such path, and of one that is not ready yet.
_FINE, _UNKNOWN, _LOADING = range(200, 300), (400, 404, 405, 501), 503
_PROBE = TracedRequest(0, None, (1, 2, 3), 3)
_BROKEN = (aiohttp.ClientError, asyncio.IncompleteReadError, OSError)
_Result = TypeVar("_Result")


class _Loading(EngineError):
    """It refuses the first request, because it is not ready yet."""


class OpenAIEngine:
    """Streams completions from a server, which it starts and ends where the settings have a command for it."""

    def __init__(self, settings: "ServerEngine", served: Served):
        self._settings, self._served = settings, served
        self._model = settings.served_model or str(served.directory.resolve())
        self._key = _key(settings)
        self._url = settings.url or ""
        self._process: ServerProcess | None = None
        self._arrivals: queue.SimpleQueue[TokenEvent] = queue.SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._session: aiohttp.ClientSession | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._usage = EngineUsage()
        self._asked_s = 0.0
        self._has_metrics = True
        self._owner: str | None = None
        self._flags: dict[str, Any] = {}

    @property
    def description(self) -> EngineDescription:
        """What the study says of the server, and what the server says of itself."""
        settings = self._settings.plain()
        flags = {key: settings[key] for key in ("body", "command", "environment", "omit", "served_model", "url")}
        return EngineDescription(
            kind="server",
            version=" ".join(filter(None, [self._owner, self._settings.version])),
            device=", ".join(self._served.devices),
            flags=flags | self._flags,
        )

    def alone(self, request: TracedRequest) -> tuple[int, ...] | None:
        """None: the model is in the server alone, which is asked for one after the other."""
        return None

    def start(self) -> None:
        """Start the server if it is ours, wait until it is ready, and see that it serves what is asked, as asked."""
        settings = self._settings
        if settings.command is not None:
            port = free_port()
            self._url = f"http://127.0.0.1:{port}"
            command = settings.command_for(self._served.directory.resolve(), port)
            self._process = ServerProcess(command, settings.environment, self._served.log, secret=self._key)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="serving-client", daemon=True)
        self._thread.start()
        self._run(self._open())
        self._await_ready()
        self._require_model()
        self._require_version()
        self._probe()

    def submit(self, request: TracedRequest) -> None:
        """Hand a request to the thread."""
        if self._loop is None:
            raise EngineError("the engine was stopped")
        self._loop.call_soon_threadsafe(self._launch, request)

    def events(self, timeout_s: float) -> Sequence[TokenEvent]:
        """Tokens with the times at which the thread had them."""
        deadline = time.perf_counter() + timeout_s
        events: list[TokenEvent] = []
        while not events:
            left = deadline - time.perf_counter()
            with contextlib.suppress(queue.Empty):
                events.append(
                    self._arrivals.get(timeout=min(left, _PERIOD_S)) if left > 0 else self._arrivals.get_nowait()
                )
            if not events:
                self._require_alive()
                if left <= 0:
                    break
        with contextlib.suppress(queue.Empty):
            while True:
                events.append(self._arrivals.get_nowait())
        if self._process is not None and any(event.error for event in events):
            # A server that has ended breaks every answer off: that is told once, with its own words.
            time.sleep(_PERIOD_S)
            self._require_alive()
        return events

    def usage(self) -> EngineUsage:
        """What the server's metrics said when they were last read, twice a second at most."""
        now = time.perf_counter()
        if self._loop is not None and self._has_metrics and now >= self._asked_s + _METRICS_PERIOD_S:
            self._asked_s = now
            self._loop.call_soon_threadsafe(self._keep, self._read_metrics())
        return self._usage

    def stop(self) -> None:
        """End the connections, and the server where it is ours."""
        loop, self._loop = self._loop, None
        try:
            if loop is not None and self._thread is not None:
                with contextlib.suppress(Exception):
                    asyncio.run_coroutine_threadsafe(self._close(), loop).result(_QUICK_S)
                loop.call_soon_threadsafe(loop.stop)
                self._thread.join(_QUICK_S)
        finally:
            process, self._process = self._process, None
            if process is not None:
                process.end()

    # What runs in the calling thread.

    def _run(self, coroutine: Coroutine[Any, Any, _Result]) -> _Result:
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def _require_alive(self) -> None:
        if self._loop is None:
            raise EngineError("the engine was stopped")
        if self._process is not None:
            self._process.require_alive()

    def _await_ready(self) -> None:
        limit_s = self._settings.ready_timeout_s
        deadline = time.monotonic() + limit_s
        said = "was never asked"
        while (left := deadline - time.monotonic()) > 0:
            self._require_alive()
            path = "/health"
            status, _ = self._run(self._get(path, min(left, _QUICK_S)))
            if status in _UNKNOWN or status in _FINE:
                path = "/v1/models"
                status, _ = self._run(self._get(path, min(left, _QUICK_S)))
                if status not in (None, _LOADING):
                    return
            if status is None and path == "/health" and self._process is None:
                raise UserError(
                    f"engine.url: nothing answers at {self._url}; start the server, or correct the address."
                )
            self._require_key(status)
            said = f"does not answer to {path}" if status is None else f"answers {status} to {path}"
            time.sleep(_PERIOD_S)
        self._require_alive()
        raise EngineError(
            f"the server at {self._url} is not ready after ready_timeout_s {limit_s:g} s and {said}; see what it says "
            "(records/server.log of one that the stage starts), or allow it more"
        )

    def _require_key(self, status: int | None) -> None:
        if status in (401, 403):
            raise UserError(
                f"the server at {self._url} wants a key, or another ({status}); name the environment variable that "
                "holds it in engine.api_key_variable."
            )

    def _require_model(self) -> None:
        status, text = self._run(self._get("/v1/models", _QUICK_S))
        self._require_key(status)
        try:
            models = {str(entry["id"]): entry for entry in json.loads(text)["data"]}
        except (ValueError, KeyError, TypeError):
            self._require_alive()
            how = "does not answer" if status is None else f"answers {status}"
            raise EngineError(f"the server at {self._url} {how} to /v1/models, and gives no list of models") from None
        if self._model not in models:
            served = ", ".join(shortened(id) for id in sorted(models)[:4]) or "no model"
            raise UserError(
                f"engine: the server at {self._url} serves {served}, not {self._model}; start it on that model, or say "
                "by what name it serves it in engine.served_model."
            )
        owner = models[self._model].get("owned_by")
        self._owner = owner if isinstance(owner, str) else None
        most = models[self._model].get("max_model_len")
        if isinstance(most, int) and most < self._served.longest:
            raise UserError(
                f"engine: the server takes {most} tokens of prompt and output, and requests have up to "
                f"{self._served.longest}; start it with room for them, or shorten the load."
            )
        self._flags["max_model_len"] = most

    def _require_version(self) -> None:
        for path in ("/version", "/get_server_info"):
            status, text = self._run(self._get(path, _QUICK_S))
            if status != 200:
                continue
            with contextlib.suppress(ValueError, TypeError, AttributeError):
                said = json.loads(text).get("version")
                if said and str(said) != self._settings.version:
                    raise UserError(
                        f"engine.version: the server says that it is {said}, the study {self._settings.version!r}; "
                        "correct the study, or install that version."
                    )
                if said:
                    return

    def _probe(self) -> None:
        """One request before all others, whose refusal is told by the parameter that it names.

        A server may say that it is well, and still load the model.
        """
        deadline = time.monotonic() + self._settings.ready_timeout_s
        while True:
            try:
                self._run(self._ask(_PROBE, is_probe=True))
                break
            except _Loading:
                self._require_alive()
                if time.monotonic() > deadline:
                    raise
                time.sleep(_PERIOD_S)
        event = self._arrivals.get()
        while not event.finished:
            event = self._arrivals.get()
        if event.error is not None:
            self._require_alive()
            raise EngineError(event.error)

    # What runs in the client's thread.

    async def _open(self) -> None:
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_IDLE_S),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_QUICK_S),
            headers=headers,
        )

    async def _close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    def _launch(self, request: TracedRequest) -> None:
        self._keep(self._ask(request))

    def _keep(self, coroutine: Coroutine[Any, Any, None]) -> None:
        # The loop itself keeps no task from being collected.
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _get(self, path: str, timeout_s: float) -> tuple[int | None, str]:
        """Status and text; None for a server that does not answer."""
        assert self._session is not None
        try:
            timeout = aiohttp.ClientTimeout(total=timeout_s)
            async with self._session.get(self._url + path, timeout=timeout, allow_redirects=False) as response:
                return response.status, await response.text(errors="replace")
        except (*_BROKEN, TimeoutError) as error:
            return None, str(error)

    async def _read_metrics(self) -> None:
        status, text = await self._get("/metrics", _QUICK_S)
        if status == 200:
            self._usage = usage_of(text)
        self._has_metrics = status in (200, None)

    async def _ask(self, request: TracedRequest, is_probe: bool = False) -> None:
        """Stream one answer into the queue; what goes wrong is the error of its last event."""
        settings = self._settings
        body = request_body(request, self._model, settings.omit, settings.body)
        answer = Answer(request)
        error, is_told = None, False
        last_s = time.perf_counter()
        timeout = aiohttp.ClientTimeout(total=settings.ready_timeout_s if is_probe else None, sock_connect=_QUICK_S)
        assert self._session is not None
        try:
            asked = self._session.post(self._url + "/v1/completions", data=body, timeout=timeout, allow_redirects=False)
            async with asked as response:
                if response.status != 200:
                    raise self._refusal(response.status, await response.text(errors="replace"), is_probe)
                while not answer.is_over and (data := await response.content.readany()):
                    last_s = time.perf_counter()
                    for piece in answer.feed(data):
                        self._arrivals.put(TokenEvent(request.index, last_s, piece.tokens, count=piece.count))
                if not answer.usage and not answer.produced:
                    self._require_stream(response.content_type, answer)
                if rest := answer.rest():
                    self._arrivals.put(TokenEvent(request.index, last_s, count=rest.count))
                self._flags["counted_by"] = answer.counted_by
                # The next request need not wait for what is left of the connection.
                self._arrivals.put(TokenEvent(request.index, last_s, finished=True))
                is_told = True
                await _end_of(response.content)
        except _Loading:
            raise
        except EngineError as found:
            error = self._public(str(found))
        except aiohttp.ServerTimeoutError:
            error = f"the server took no connection within {_QUICK_S:g} s"
        except TimeoutError:
            error = f"the server gave no answer to a first request within {settings.ready_timeout_s:g} s"
        except _BROKEN as found:
            error = (
                f"the connection to the server broke off after {answer.produced} of {request.output_tokens} tokens "
                f"({reason_of(found)})"
            )
        if not is_told:
            self._arrivals.put(TokenEvent(request.index, last_s, finished=True, error=error))

    def _require_stream(self, content_type: str, answer: Answer) -> None:
        if said := answer.said_instead():
            raise EngineError(f"the server answers 200 to a request, with an error: {said}")
        if content_type != _STREAM:
            raise EngineError(f"the server answers with {content_type}, where a stream was asked for")

    def _refusal(self, status: int, text: str, is_probe: bool) -> Exception:
        said = message_of(self._public(text))
        if not is_probe or status >= 500:
            kind = _Loading if is_probe and status == _LOADING else EngineError
            return kind(f"the server answers {status} to a request: {said}")
        named = refused_parameters(text, self._settings.omit)
        if named:
            lost = "; ".join(LOST[name] for name in named)
            return UserError(
                f"engine.omit: the server answers {status} to {', '.join(named)} ({said}); list it there ({lost})."
            )
        if "prompt" in said and "string" in said:
            return UserError(
                f"engine: the server takes no prompts of token ids (it answers {status}: {said}), so the lengths of "
                "prompts would not be exact; use another server."
            )
        return UserError(f"engine: the server answers {status} to a request of three tokens: {said}.")

    def _public(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


async def _end_of(content: aiohttp.StreamReader) -> None:
    """Wait for the end of a stream that has said it is over, and may stay open or go on all the same."""
    with contextlib.suppress(TimeoutError, *_BROKEN):
        async with asyncio.timeout(_LAST_S):
            while await content.readany():
                pass


def _key(settings: "ServerEngine") -> str | None:
    name = settings.api_key_variable
    if name is None:
        return None
    if not (key := os.environ.get(name, "").strip()):
        raise UserError(
            f"engine.api_key_variable: the environment variable {name} is empty; set it to the server's key."
        )
    return key
