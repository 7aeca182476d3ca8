"""Serving by Transformers' engine at the pace of the library's own generation, which is the host's.

A step of the engine writes a token of each request, whatever their number, until the device takes longer than the host.
The engine itself was not measured: plans say so.
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from effllm.planning.reference.decoding import Pace, pace
from effllm.planning.reference.rates import Reference, all_of
from effllm.serving.engines.transformers import TransformersEngine
from effllm.serving.load import Length
from effllm.serving.settings import ServeConfig
from effllm.stages.cost import Unknown

if TYPE_CHECKING:
    from effllm.models.costs.shapes import Shape

# From the start of the stage to the engine's first token, and reading of weights from the disk.
_START_S = 10.0
_LOADED_B_PER_S = 1.5e9


def serving(config: Mapping[str, Any], shape: "Shape", kind: str, weights_b: float, device: str) -> Reference | None:
    """Time of the protocol in a precision of this kind; None for a device without peaks or a model without layers.

    Raises `Unknown` for what only a server, or a trace, can tell.
    """
    asked = ServeConfig.model_validate(dict(config))
    load = asked.load
    if not isinstance(asked.engine, TransformersEngine):
        raise Unknown("how fast a server is, is known once it has served")
    if load.prompt_tokens is None or load.output_tokens is None:
        raise Unknown("how long the requests of a trace are, is known once it was read")
    prompt, output = _mean(load.prompt_tokens), _mean(load.output_tokens)
    known = pace(shape, kind, weights_b, round(prompt), device)
    if known is None:
        return None
    token_s = known.forward_ms(is_prefill=False, is_graph=False) / 1e3
    seconds = _START_S + weights_b / _LOADED_B_PER_S + asked.idle_s + asked.compared_requests * output * token_s

    def together_s(count: int) -> float:
        """So many requests that begin at once, from their prompts to their last tokens."""
        return known.prefill_ms / 1e3 * count + output * token_s

    requests = asked.warmup_requests + asked.requests
    if load.arrivals.kind == "closed_loop":
        count = load.arrivals.concurrency
        seconds += (2 + requests / count) * together_s(count)
        work = f"{requests:,} requests, {count:,} at once"
    else:
        assert asked.saturation is not None
        best, loops, count = 0.0, 0, asked.saturation.concurrency
        seconds += together_s(count)
        while count <= asked.saturation.maximum_concurrency:
            rate, before = count / together_s(count), best
            seconds += asked.cooldown_s + asked.saturation.rounds * together_s(count)
            best, loops, count = max(best, rate), loops + 1, 2 * count
            if rate <= (1 + asked.saturation.gain) * before:
                break
        seconds += sum(asked.cooldown_s + requests / (part * best) for part in asked.fractions)
        work = f"{loops} closed loops, {requests:,} requests at {len(asked.fractions)} parts of {best:.3g} a second"
    return Reference(seconds, _power_w(known), known.row["device"], known.rate, work, _doubts(known))


def _power_w(known: Pace) -> float:
    """That of the library's own generation, one sequence at a time, which is the host's pace too."""
    return known.power_w(is_graph=False)


def _doubts(known: Pace) -> str | None:
    return all_of([known.beyond, "continuous batching was not measured, generation was"])


def _mean(length: Length) -> float:
    if length.kind == "fixed":
        return float(length.tokens)
    if length.kind == "uniform":
        return (length.least + length.most) / 2
    return min(length.median * math.exp(length.sigma**2 / 2), float(length.most))
