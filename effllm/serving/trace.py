"""The requests of one load, written before it is played and played again from the file.

A trace is a text file of JSON lines: the first says how the requests are sent, each other one is a request.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from effllm.errors import UserError


@dataclass(frozen=True)
class TracedRequest:
    """A request: its number in the trace, when it arrives, its prompt, and how many tokens are to come.

    `scheduled_s` counts from the trace's start; None in a closed loop, where a request is sent when a place is free.
    """

    index: int
    scheduled_s: float | None
    prompt: tuple[int, ...]
    output_tokens: int


@dataclass(frozen=True)
class Trace:
    """Requests in the order of their arrival. `concurrency`, of a closed loop, is how many are under way at once."""

    requests: tuple[TracedRequest, ...]
    concurrency: int | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be played, by ValueError."""
        if not self.requests:
            raise ValueError("it has no requests")
        if self.concurrency is not None and self.concurrency < 1:
            raise ValueError(f"concurrency is {self.concurrency}, where at least one request is under way")
        before = 0.0
        for number, request in enumerate(self.requests):
            if request.index != number:
                raise ValueError(f"request {number} has the index {request.index}")
            if not request.prompt or min(request.prompt) < 0 or request.output_tokens < 1:
                raise ValueError(f"request {number} wants a prompt of token ids and at least one token of output")
            if (request.scheduled_s is None) != (self.concurrency is not None):
                raise ValueError(f"request {number} has a time in a closed loop, or none in an open one")
            if request.scheduled_s is not None:
                if not before <= request.scheduled_s < math.inf:
                    raise ValueError(f"request {number} is at {request.scheduled_s} s, before the one before it")
                before = request.scheduled_s

    @property
    def rate_per_s(self) -> float | None:
        """Requests a second over the gaps between the first and the last; None where they have no times or gaps."""
        last_s = self.requests[-1].scheduled_s
        first_s = self.requests[0].scheduled_s
        if first_s is None or last_s is None or last_s == first_s:
            return None
        return (len(self.requests) - 1) / (last_s - first_s)

    def write(self, path: Path) -> None:
        """Write the trace; equal traces are equal files."""
        lines: list[dict[str, Any]] = [{"concurrency": self.concurrency, "requests": len(self.requests)}]
        lines += [
            {
                "index": request.index,
                "output_tokens": request.output_tokens,
                "prompt": list(request.prompt),
                "scheduled_s": request.scheduled_s,
            }
            for request in self.requests
        ]
        path.write_text("".join(json.dumps(line, separators=(",", ":"), allow_nan=False) + "\n" for line in lines))

    @classmethod
    def read(cls, path: Path) -> "Trace":
        """The trace in a file; `UserError` where it is not one."""
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
            if not lines:
                raise ValueError("it is empty")
            first = _First.model_validate_json(lines[0])
            requests = [_request(number, line) for number, line in enumerate(lines[1:], start=2)]
            if len(requests) != first.requests:
                raise ValueError(f"it has {len(requests)} of {first.requests} requests")
            return cls(tuple(requests), first.concurrency)
        except OSError as error:
            raise UserError(f"The trace {path} cannot be read ({error.strerror}): check its path.") from None
        except ValueError as error:
            raise UserError(f"{path} is not a whole trace of requests ({_what(error)}): copy it again.") from None


class _First(BaseModel):
    """The first line of a trace."""

    model_config = ConfigDict(strict=True)

    concurrency: int | None
    requests: int


class _Line(BaseModel):
    """Each other line."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    index: int
    output_tokens: int
    prompt: tuple[int, ...]
    scheduled_s: float | None


def _request(number: int, line: str) -> TracedRequest:
    try:
        return TracedRequest(**dict(_Line.model_validate_json(line)))
    except ValidationError as error:
        raise ValueError(f"line {number}: {_what(error)}") from None


def _what(error: ValueError) -> str:
    """What is wrong, in a few words: of pydantic's report its first finding."""
    if isinstance(error, UnicodeDecodeError):
        return "it is no text"
    if not isinstance(error, ValidationError):
        return str(error)
    found = error.errors()[0]
    key = ".".join(str(part) for part in found["loc"])
    return f"{key}: {found['msg']}" if key else str(found["msg"])
