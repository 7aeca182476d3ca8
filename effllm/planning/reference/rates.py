"""The rows of the CSV files here, and how far from what was measured a rate is taken."""

import csv
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# A rate is good for models of so many times fewer or more parameters: others are bound by other things.
RANGE = 4.0
# An allowance for what a stage publishes beside its few figures: answers, samples of telemetry, requests.
RECORDS_B = {"evaluate": 5e6, "profile": 5e6, "serve": 20e6}

Row = Mapping[str, str]


@dataclass(frozen=True)
class Reference:
    """What a shipped rate says of a node.

    seconds: wall time from start to end. power_w: of the device while it works, None where the rate has none. device:
    on which the rate was measured. rate: what was measured, and the range that it is good for. work: of how much, where
    the study alone does not say it. beyond: why the rate is not good for the node, None where it is. disk_b: bytes
    published, where these follow from the amount of work.
    """

    seconds: float
    power_w: float | None
    device: str
    rate: str
    work: str
    beyond: str | None = None
    disk_b: float | None = None

    @property
    def source(self) -> str:
        """Work, rate, and why that is beyond what it is good for, where it is."""
        parts = [self.work, self.rate, f"beyond that range: {self.beyond}" if self.beyond else ""]
        return "; ".join(part for part in parts if part)


@functools.cache
def rows(name: str) -> tuple[Row, ...]:
    """The rows of a file of this folder."""
    with open(Path(__file__).with_name(f"{name}.csv"), newline="") as stream:
        return tuple(csv.DictReader(stream))


def nearest(found: Iterable[Row], parameters: float) -> Row:
    """The row of the model that is nearest in size, by ratio."""
    return min(found, key=lambda row: abs(math.log(float(row["parameters"]) / parameters)))


def good_for(parameters: float) -> str:
    """The range of a rate that was measured on a model of so many parameters, in words."""
    return f"good for {_billions(parameters / RANGE)} to {_billions(parameters * RANGE)} parameters"


def is_near(parameters: float, measured: float) -> bool:
    """Whether a rate of a model of `measured` parameters is good for `parameters`."""
    return 1 / RANGE <= parameters / measured <= RANGE


def beyond_size(parameters: float, measured: float) -> str | None:
    """Why a rate is not good for a model of this size; None where it is."""
    return None if is_near(parameters, measured) else f"the model has {_billions(parameters)} parameters"


def all_of(doubts: Sequence[str | None]) -> str | None:
    """The doubts that there are, as one; None where there is none."""
    return "; ".join(doubt for doubt in doubts if doubt) or None


def _billions(parameters: float) -> str:
    return f"{parameters / 1e9:.2g}B" if parameters >= 1e9 else f"{parameters / 1e6:.3g}M"
