"""An engine that answers by a script, and the clock that it moves."""

from collections.abc import Sequence

from effllm.serving.engine import EngineDescription, EngineUsage, TokenEvent
from effllm.serving.trace import TracedRequest


class ScriptedClock:
    """A clock that goes on when it is told to."""

    def __init__(self) -> None:
        self.time_s = 100.0

    def now(self) -> float:
        return self.time_s


class ScriptedEngine:
    """Serves up to `places` requests at once, each token `step_s` after the one before; others wait."""

    description = EngineDescription("scripted", "1", "cpu", in_process=True)

    def __init__(self, clock: ScriptedClock, step_s: float = 1.0, places: int = 8):
        self.clock, self.step_s, self.places = clock, step_s, places
        self.queue: list[TracedRequest] = []
        self.active: dict[int, tuple[float, int, int]] = {}
        self.most_active = 0
        self.silent = False

    def alone(self, request: TracedRequest) -> tuple[int, ...] | None:
        return None

    def start(self) -> None:
        pass

    def submit(self, request: TracedRequest) -> None:
        self.queue.append(request)
        self._admit()

    def _admit(self) -> None:
        while self.queue and len(self.active) < self.places:
            request = self.queue.pop(0)
            self.active[request.index] = (self.clock.now() + self.step_s, 0, request.output_tokens)
        self.most_active = max(self.most_active, len(self.active) + len(self.queue))

    def events(self, timeout_s: float) -> Sequence[TokenEvent]:
        limit = self.clock.now() + timeout_s
        due = min((at for at, _, _ in self.active.values()), default=limit + 1)
        if self.silent or due > limit:
            self.clock.time_s = limit
            return []
        self.clock.time_s = max(due, self.clock.time_s)
        events = []
        for index, (at, done, wanted) in list(self.active.items()):
            if at <= self.clock.time_s:
                events.append(TokenEvent(index, at, (done,), done + 1 == wanted))
                self.active[index] = (at + self.step_s, done + 1, wanted)
                if done + 1 == wanted:
                    del self.active[index]
        self._admit()
        return events

    def usage(self) -> EngineUsage:
        return EngineUsage(cache_fraction=len(self.active) / self.places, running=len(self.active))

    def stop(self) -> None:
        pass
