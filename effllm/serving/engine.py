"""What serves requests, as the rest of this package sees it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from effllm.serving.trace import TracedRequest


@dataclass(frozen=True)
class EngineDescription:
    """What an engine is: its kind in the study, its version, its device, and the settings that it runs with.

    dtype: the type that it computes in, where it says so. One that is `in_process` computes in this process; another
    has this process as its client alone.
    """

    kind: str
    version: str
    device: str
    dtype: str | None = None
    flags: dict[str, Any] = field(default_factory=dict)
    in_process: bool = False


@dataclass(frozen=True)
class TokenEvent:
    """Tokens of a request that have arrived, at a time of `time.perf_counter`.

    An engine that does not give the ids of tokens leaves `tokens` empty and says in `count` how many there are. The
    last event of a request is `finished`, with the error that ended it or None.
    """

    index: int
    time_s: float
    tokens: tuple[int, ...] = ()
    finished: bool = False
    error: str | None = None
    count: int | None = None

    @property
    def token_count(self) -> int:
        """How many tokens have arrived."""
        return len(self.tokens) if self.count is None else self.count


@dataclass(frozen=True)
class EngineUsage:
    """What an engine says of itself at one moment; None is what it does not say.

    `cache_fraction` is the part of its cache that is taken; `preemptions` counts from the engine's start.
    """

    cache_fraction: float | None = None
    running: int | None = None
    waiting: int | None = None
    preemptions: int | None = None


class Engine(Protocol):
    """Serves requests one after the other or together; a request's end of text is not its end.

    Methods but `start` raise `EngineError` once the engine is no more.
    """

    @property
    def description(self) -> EngineDescription:
        """What the engine is. Known once it has started."""

    def alone(self, request: TracedRequest) -> tuple[int, ...] | None:
        """What the model says to a prompt alone, by another way than the engine's; None where there is none.

        Asked before the engine is started.
        """

    def start(self) -> None:
        """Make the engine ready for requests.

        `UserError` where the study or the machine is at fault, `CellFailure` where the model cannot be served, and
        `EngineError` otherwise say why it is not.
        """

    def submit(self, request: TracedRequest) -> None:
        """Hand a request over, without waiting for it. Its index is unique among those under way."""

    def events(self, timeout_s: float) -> Sequence[TokenEvent]:
        """What has arrived since the last call; waits up to `timeout_s` for the first, and may be empty."""

    def usage(self) -> EngineUsage:
        """How full the engine is now. Cheap enough to be asked several times a second."""

    def stop(self) -> None:
        """End the engine and everything that it has started. Harmless where it never started, or is no more."""
