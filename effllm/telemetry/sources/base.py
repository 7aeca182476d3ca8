"""What a source of readings is: its quantities, its errors, its energy meter, and its null object."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol


@dataclass(frozen=True)
class Quantity:
    """One number that a source reads.

    `kind` says how it may be used: a `gauge` is averaged over time, a `counter` only ever differenced,
    `flags` is a bit mask. `wraps_at` is the value at which a counter starts again from zero (None: it never
    does, so a decrease means a reset).
    """

    unit: str
    kind: Literal["gauge", "counter", "flags"]
    meaning: str
    wraps_at: float | None = None


@dataclass(frozen=True)
class EnergyMeter:
    """Which quantities of a source make up an energy, and what hardware they cover.

    `counters` are summed; so are `powers`. The scopes are named apart because some superchips answer power
    for the GPU and count energy for the module; energies of differing scope are never compared. Each sensor
    shows what was true up to `*_update_s` ago, which decides how short a window may be.
    """

    counters: tuple[str, ...] = ()
    counter_scope: str | None = None
    counter_update_s: float = 0.0
    powers: tuple[str, ...] = ()
    power_scope: str | None = None
    power_update_s: float = 0.0


class SourceUnavailable(RuntimeError):
    """This machine, or this user, does not have the source; the message is the reason, as a sentence part."""


class SourceLost(RuntimeError):
    """A source that was open can no longer be read at all: device gone, process ended, file removed."""


class Source(Protocol):
    """An open instrument; sources inherit from this for the two defaults.

    `quantities` are those it reads; `missing` maps those that it might have had to the reason why not;
    `facts` are constants read once (JSON-serialisable). `min_period_s` is the interval below which the sensor
    has nothing new to say. `in_workload` is true where only the workload's own process can read it.
    """

    name: str
    quantities: Mapping[str, Quantity]
    missing: Mapping[str, str]
    facts: Mapping[str, Any]
    meter: EnergyMeter | None
    min_period_s: float
    in_workload: bool

    def read(self) -> dict[str, float]:
        """Read now: quantity -> value, NaN for one that could not be read this time.

        One that changes slowly, or is dear to read, may be left out of most readings. Raises SourceLost when nothing
        can be read any more.
        """
        ...

    def read_at_edge(self) -> dict[str, float]:
        """Read now, at the edge of a window: as `read`, with whatever care an edge asks for."""
        return self.read()

    def close(self) -> None:
        """Release what the source holds. It is not read afterwards. Most hold nothing."""
        return


@dataclass(frozen=True)
class NullSource(Source):
    """The null object of a source that is not there: it reads nothing and says why."""

    name: str
    reason: str
    quantities: Mapping[str, Quantity] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    meter: EnergyMeter | None = None
    min_period_s: float = 0.0
    in_workload: bool = False

    def read(self) -> dict[str, float]:
        """Nothing."""
        return {}
