"""What training loses by being spread over several devices: bytes between ranks at the rates that two of them had.

A step of P ranks takes 1/P of what one device needs, and on top what it waits for: the optimizer, where every rank has
all of it, and the bytes that a rank sends. Rates are effective ones, bytes over the time by which a step on two devices
was longer than half of one: they hold whatever was hidden behind arithmetic, or held up by the host.

Bytes of collective operations: Thakur et al. 2005, "Optimization of Collective Communication Operations in MPICH"
(rings); which ones a strategy calls: Rajbhandari et al. 2020, "ZeRO", section 7, and the documents of DDP and FSDP2.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from effllm.planning.reference.rates import beyond_size, rows

# AdamW of float32 parameters, gradients and moments: four reads and three writes, and the bytes a second of its kernel
# in a step of 1.5 billion parameters (docs/results/h100/kernels.md).
_OPTIMIZER_B = 28.0
_OPTIMIZER_B_PER_S = 2.7e12
_HALF_B, _FULL_B = 2, 4
# Share of a network's line rate that collective operations get: an allowance.
_OF_LINE_RATE = 0.8


@dataclass(frozen=True)
class Spread:
    """What a step takes beyond its share of the arithmetic, in s and in words, and why that may not hold."""

    seconds: float
    sentence: str
    doubts: tuple[str | None, ...]


def bytes_sent(strategy: str, parameters: float, ranks: int, micro_batches: int) -> float:
    """Bytes that each rank sends in a step, of float32 weights that are trained in bfloat16, by rings.

    ddp adds up float32 gradients once. fsdp2 gathers bfloat16 weights before each forward and backward pass, and
    scatters float32 gradients once. zero2 scatters bfloat16 gradients of every micro batch and gathers the weights
    once; zero3 gathers them for both passes of every micro batch, and scatters as often.
    """
    half, full = _HALF_B * parameters, _FULL_B * parameters
    whole = {
        "single": 0.0,
        "ddp": 2 * full,
        "fsdp2": micro_batches * 2 * half + full,
        "zero2": micro_batches * half + half,
        "zero3": micro_batches * 3 * half,
    }[strategy]
    return whole * (ranks - 1) / ranks


def spreading(
    config: Mapping[str, Any],
    parameters: float,
    arithmetic_s: float,
    device: str,
    network_b_per_s: float | None = None,
) -> Spread | None:
    """Of a training whose step of all ranks has `arithmetic_s` of arithmetic on each; None on one device.

    config: with `parallel`, `global_batch_size` and `micro_batch_size`, as `Recipe` has them. network_b_per_s: line
    rate of the network between hosts for each device; None leaves out what it adds.
    """
    parallel = config.get("parallel") or {}
    strategy, nodes = parallel.get("strategy", "single"), int(parallel.get("nodes", 1))
    ranks = int(parallel.get("devices", 1)) * nodes
    if ranks == 1 or strategy == "single":
        return None
    micro_batches = max(1, round(config["global_batch_size"] / (config["micro_batch_size"] * ranks)))
    measured = _measured()[strategy]
    sent_b = bytes_sent(strategy, parameters, ranks, micro_batches)
    within_s = sent_b / measured.b_per_s
    between_s = 0.0
    if nodes > 1 and network_b_per_s is not None:
        # Arithmetic goes on meanwhile: what it covers was paid for in the rate within a host.
        between_s = max(0.0, sent_b / (network_b_per_s * _OF_LINE_RATE) - arithmetic_s - within_s)
    seconds = within_s + between_s + _unshared_optimizer_s(strategy, parameters, ranks)
    sentence = (
        f"{seconds * 1e3:,.0f} ms a step for {sent_b / 1e9:,.1f} GB that each of {ranks} ranks sends by {strategy}, "
        f"at {measured.b_per_s / 1e9:,.0f} GB/s of two on {measured.device}"
    )
    doubts = (
        f"{ranks} devices, of which two were measured" if ranks > 2 else None,
        "what the network between hosts adds is left out: --assume-network-gb-per-s"
        if nodes > 1 and network_b_per_s is None
        else None,
        f"devices of another kind than {measured.device}" if device != measured.device else None,
        "the optimizer is in the host's memory" if parallel.get("offload") else None,
        beyond_size(parameters, measured.parameters),
    )
    return Spread(seconds, sentence, doubts)


@dataclass(frozen=True)
class _Measured:
    b_per_s: float
    parameters: float
    device: str


@functools.cache
def _measured() -> Mapping[str, _Measured]:
    found = {}
    for row in rows("spread"):
        parameters, ranks = float(row["parameters"]), int(row["ranks"])
        lost_s = float(row["step_s"]) - float(row["alone_s"]) / ranks
        lost_s -= _unshared_optimizer_s(row["strategy"], parameters, ranks)
        sent_b = bytes_sent(row["strategy"], parameters, ranks, int(row["micro_batches"]))
        found[row["strategy"]] = _Measured(sent_b / lost_s, parameters, row["device"])
    return found


def _unshared_optimizer_s(strategy: str, parameters: float, ranks: int) -> float:
    """By how much the optimizer's step is longer than a rank's share of it."""
    if strategy != "ddp":
        return 0.0
    return (1 - 1 / ranks) * parameters * _OPTIMIZER_B / _OPTIMIZER_B_PER_S
