"""Share of the peak that training from random weights reached, by technique, size and context."""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from effllm.planning.reference.rates import RANGE, Reference, all_of, beyond_size, good_for, is_near, rows
from effllm.planning.reference.spreading import spreading
from effllm.telemetry.peaks import peak_flops_per_s

_TECHNIQUE = ("model_type", "attention", "position", "feed_forward")
_PLAIN = ("effllm", "gqa", "rope", "swiglu")
# From the start of the stage to the first steady step: weights, the device, kernels; and where a model is compiled.
START_S = 5.0
COMPILED_START_S = 85.0
# Passes over the model: one forward and two of gradients; a second forward where activations are recomputed.
_PASSES = {False: 3, True: 4}


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

    @property
    def sentence(self) -> str:
        """What it is and what it is good for."""
        return (
            f"MFU {self.mfu:.3g} of {self.run} at {self.context:,} tokens on {self.device}, {good_for(self.parameters)}"
        )


def pretraining(
    config: Mapping[str, Any], parameters: float, flops: float, device: str, network_b_per_s: float | None = None
) -> Reference | None:
    """Time of a pretraining node on one device or several; None for a device without a peak.

    network_b_per_s: of the network between hosts, as `spreading` has it.
    """
    peak = peak_flops_per_s(device, "bfloat16")
    if peak is None:
        return None
    rate, beyond = nearest_rate(config, parameters)
    trend = _trend(rate, parameters, float(config["sequence_length"]))
    passes = _PASSES[bool(config.get("activation_checkpointing"))] / _PASSES[rate.recomputes]
    mfu = rate.mfu * trend / passes
    parallel = config.get("parallel") or {}
    devices = int(parallel.get("devices", 1)) * int(parallel.get("nodes", 1))
    start_s = COMPILED_START_S if config.get("compile") else START_S
    arithmetic_s = flops / (peak * mfu * devices)
    work = [f"times {trend:.2f}, as plain decoders change between the two sizes"] if trend != 1 else []
    spread = spreading(config, parameters, arithmetic_s / config["max_steps"], device, network_b_per_s)
    spread_s = 0.0
    if spread is not None:
        spread_s = spread.seconds * config["max_steps"]
        work, beyond = [*work, spread.sentence], all_of([beyond, *spread.doubts])
    seconds = start_s + arithmetic_s + spread_s
    return Reference(seconds, rate.power_w, rate.device, rate.sentence, "; ".join(work), beyond)


def nearest_rate(config: Mapping[str, Any], parameters: float) -> tuple[Rate, str | None]:
    """The run nearest to a pretraining node, and why its rate is not good for it; None where it is.

    Of the same technique if one was measured, that recomputes and compiles as it does if there is one, and of these
    nearest in size and context.
    """
    architecture = config.get("architecture")
    given = architecture if isinstance(architecture, Mapping) else {}
    technique = tuple(str(given.get(key) or "") for key in _TECHNIQUE)
    how = (bool(config.get("activation_checkpointing")), bool(config.get("compile")))
    context = float(config["sequence_length"])

    def distance(rate: Rate) -> tuple[bool, float]:
        far = abs(math.log(parameters / rate.parameters)) + abs(math.log(context / rate.context))
        # A run that does otherwise comes after those within the range that do as the node does.
        penalty = 0.0 if (rate.recomputes, rate.compiled) == how else 2 * math.log(RANGE)
        return rate.technique != technique, far + penalty

    rate = min(_rates(), key=distance)
    doubts = [
        f"no run of {'/'.join(part for part in technique if part) or 'its architecture'} was measured"
        if rate.technique != technique
        else None,
        beyond_size(parameters, rate.parameters),
        None if (rate.recomputes, rate.compiled) == how else "it was measured with other recomputing or compiling",
        f"its arithmetic is {config['dtype']}" if config.get("dtype", "bfloat16") != "bfloat16" else None,
    ]
    return rate, all_of(doubts)


def _trend(rate: Rate, parameters: float, context: float) -> float:
    """What size and context do to plain grouped-query decoders from those of a rate; 1 within the rate's range."""
    if is_near(parameters, rate.parameters):
        return 1.0

    def plain(size: float, length: float) -> float:
        found = [other for other in _rates() if other.technique == _PLAIN and not (other.recomputes or other.compiled)]
        nearest = min(
            found, key=lambda other: abs(math.log(size / other.parameters)) + abs(math.log(length / other.context))
        )
        return nearest.mfu

    return plain(parameters, context) / plain(rate.parameters, rate.context)


@functools.cache
def _rates() -> tuple[Rate, ...]:
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
        for row in rows("pretrain")
    )
