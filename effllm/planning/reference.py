"""Rates of training that were measured on one H100 and ship with the package: for plans on machines without a history.

`reference.csv` holds rows of docs/results/h100/table3.csv to table6.csv: share of the peak and power by technique, size
and context. Another device is taken to reach the same share of its own peak.
"""

import csv
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# A rate is good for models of so many times fewer or more parameters: smaller ones are bound by other things.
_RANGE = 4.0
_TECHNIQUE = ("model_type", "attention", "position", "feed_forward")


@dataclass(frozen=True)
class Rate:
    """One measured run. technique: its architecture's `_TECHNIQUE`, empty where it has no such key."""

    run: str
    technique: tuple[str, ...]
    recomputes: bool
    compiled: bool
    parameters: float
    context: int
    mfu: float
    power_w: float
    device: str

    def sentence(self) -> str:
        """What it is and what it is good for."""
        least, most = self.parameters / _RANGE, self.parameters * _RANGE
        return (
            f"MFU {self.mfu:.3g} of {self.run} at {self.context:,} tokens on {self.device}, good for "
            f"{least / 1e9:.2g} to {most / 1e9:.2g} billion parameters"
        )


def reference_rate(config: Mapping[str, Any], parameters: float) -> Rate | None:
    """The rate of the nearest run of the technique that `config`, of a pretraining node, names; None beyond its range.

    Nearest in size and context, of those that recompute and compile as it does.
    """
    architecture = config.get("architecture")
    if not isinstance(architecture, Mapping):
        return None
    technique = tuple(str(architecture.get(key) or "") for key in _TECHNIQUE)
    how = (bool(config.get("activation_checkpointing")), bool(config.get("compile")))
    fitting = [
        rate
        for rate in _rates()
        if rate.technique == technique
        and (rate.recomputes, rate.compiled) == how
        and 1 / _RANGE <= parameters / rate.parameters <= _RANGE
    ]
    context = float(config["sequence_length"])

    def distance(rate: Rate) -> float:
        return abs(math.log(parameters / rate.parameters)) + abs(math.log(context / rate.context))

    return min(fitting, key=distance, default=None)


@functools.cache
def _rates() -> tuple[Rate, ...]:
    with open(Path(__file__).with_suffix(".csv"), newline="") as stream:
        return tuple(
            Rate(
                run=row["run"],
                technique=tuple(row[key] for key in _TECHNIQUE),
                recomputes=row["recomputes"] == "true",
                compiled=row["compiled"] == "true",
                parameters=float(row["parameters"]),
                context=int(row["context"]),
                mfu=float(row["mfu"]),
                power_w=float(row["power_w"]),
                device=row["device"],
            )
            for row in csv.DictReader(stream)
        )
