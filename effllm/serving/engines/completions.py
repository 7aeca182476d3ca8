"""The completions API of OpenAI, as servers of models have it: what is asked, and what a stream of events answers."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from effllm.errors import EngineError
from effllm.serving.trace import TracedRequest

Optional = Literal["continuous_usage_stats", "ignore_eos", "min_tokens", "return_token_ids"]
"""Parameters of a request that the API itself does not have."""

# What is lost without each of them.
LOST: dict[str, str] = {
    "continuous_usage_stats": "every piece of an answer then counts as one token",
    "ignore_eos": "outputs then end where the model ends them, and a shorter one is an error",
    "min_tokens": "outputs may then end early, unless ignore_eos keeps them from it",
    "return_token_ids": "outputs are then not compared with those of each prompt alone",
}
_DATA = b"data:"
_END = b"[DONE]"
_LONGEST_SAID = 2000


def request_body(request: TracedRequest, model: str, omitted: Collection[str], extra: Mapping[str, Any]) -> bytes:
    """The body of a request: a prompt of token ids, decoded greedily, of an exact length where the server can."""
    options: dict[str, Any] = {"include_usage": True}
    body: dict[str, Any] = {
        "model": model,
        "prompt": list(request.prompt),
        "max_tokens": request.output_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": options,
        "min_tokens": request.output_tokens,
        "ignore_eos": True,
        "return_token_ids": True,
    }
    if "continuous_usage_stats" not in omitted:
        options["continuous_usage_stats"] = True
    kept = {key: value for key, value in body.items() if key not in omitted}
    return json.dumps(kept | dict(extra), separators=(",", ":")).encode()


def refused_parameters(text: str, omitted: Collection[str]) -> list[str]:
    """Which of the optional parameters a server's refusal names."""
    return [name for name in get_args(Optional) if name not in omitted and name in text]


def message_of(body: str) -> str:
    """What the body of a refusal says, in one short line."""
    try:
        content: Any = json.loads(body)
    except (ValueError, RecursionError):
        content = body
    for _ in range(4):
        if isinstance(content, list) and content:
            content = content[0]
        elif isinstance(content, dict):
            known = [content[key] for key in ("error", "message", "detail", "msg") if content.get(key)]
            content = known[0] if known else json.dumps(content)
    line = " ".join(str(content).split()).rstrip(".")
    return line if len(line) <= 200 else f"{line[:200]}..."


def _tells_of_an_error(event: dict[str, Any]) -> bool:
    return bool(event.get("error")) or event.get("object") == "error" or ("detail" in event and "choices" not in event)


@dataclass(frozen=True)
class Piece:
    """Tokens that came together; `tokens` is empty where the server does not give their ids."""

    count: int
    tokens: tuple[int, ...] = ()


@dataclass
class Answer:
    """An answer while it comes: bytes go in, pieces come out.

    How many tokens a piece has is known by their ids, else by the usage beside it, else it is taken to be one and the
    usage at the end says what is missing.
    """

    request: TracedRequest
    counted_by: Literal["ids", "usage", "pieces"] | None = None
    produced: int = 0
    is_over: bool = False
    finish_reason: str | None = None
    usage: dict[str, int] = field(default_factory=dict)
    _rest: bytes = b""
    _beside: bytes = b""

    def feed(self, data: bytes) -> list[Piece]:
        """What more bytes hold; `EngineError` where they are no answer, or more of one than was asked for."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        pieces = []
        for line in lines:
            if line.startswith(_DATA):
                content = line[len(_DATA) :].strip()
                if content == _END:
                    self.is_over = True
                elif piece := self._piece(content):
                    pieces.append(piece)
            elif len(self._beside) < _LONGEST_SAID:
                self._beside += line
        if self.produced > self.request.output_tokens:
            # It need not end by itself.
            of = "pieces" if self.counted_by == "pieces" else "tokens"
            raise EngineError(f"{self.produced} {of} came where {self.request.output_tokens} were asked for")
        return pieces

    def said_instead(self) -> str | None:
        """What was said in the place of a stream, where that tells of an error."""
        text = (self._beside + self._rest[:_LONGEST_SAID]).decode(errors="replace").strip()
        try:
            content = json.loads(text)
        except (ValueError, RecursionError):
            return None
        return message_of(text) if isinstance(content, dict) and _tells_of_an_error(content) else None

    def _piece(self, content: bytes) -> Piece | None:
        try:
            event = json.loads(content)
            if _tells_of_an_error(event):
                raise EngineError(f"the server breaks an answer off: {message_of(json.dumps(event))}")
            choice: dict[str, Any] = next(iter(event.get("choices") or ()), {})
            tokens = tuple(int(token) for token in choice.get("token_ids") or ())
            said = event.get("usage") or {}
            usage = {key: int(said[key]) for key in ("prompt_tokens", "completion_tokens") if said.get(key) is not None}
            produced = usage.get("completion_tokens", 0)
        except (ValueError, AttributeError, TypeError, OverflowError, RecursionError):
            raise EngineError(f"the server sends {content[:80]!r}, which is no part of a completion") from None
        self.usage |= usage
        self.finish_reason = choice.get("finish_reason") or self.finish_reason
        if tokens:
            self.counted_by, count = "ids", len(tokens)
        elif produced and choice:
            self.counted_by, count = self.counted_by or "usage", produced - self.produced
        elif choice.get("text") and not produced:
            self.counted_by, count = self.counted_by or "pieces", 1
        else:
            return None
        if count <= 0:
            return None
        self.produced += count
        return Piece(count, tokens)

    def rest(self) -> Piece | None:
        """Tokens that came without a piece of their own, at the end; `EngineError` where the answer is not whole."""
        request = self.request
        said = max(self.produced, self.usage.get("completion_tokens", 0))
        if self.finish_reason is None and (not self.is_over or said < request.output_tokens):
            raise EngineError(f"the server broke an answer off after {self.produced} of {request.output_tokens} tokens")
        prompt, produced = self.usage.get("prompt_tokens"), self.usage.get("completion_tokens")
        if prompt is None or produced is None:
            raise EngineError(
                "the server gives no usage of tokens at the end of a stream, by which they are counted: use one, or a "
                "version of it, that knows stream_options.include_usage"
            )
        if prompt != len(request.prompt):
            raise EngineError(f"the server counts {prompt} tokens of a prompt of {len(request.prompt)}")
        missing = produced - self.produced
        if missing < 0 or (missing and self.counted_by == "ids"):
            raise EngineError(f"the server says that {produced} tokens were generated, and sent {self.produced}")
        self.produced = produced
        return Piece(missing) if missing else None
