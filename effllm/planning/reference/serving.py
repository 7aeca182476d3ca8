"""Serving by Transformers' engine: what a step takes that gives each request a token, and one that reads prompts.

Both were measured of one model, for each kind of attention: `few_ms` is its bare step, which a few requests take,
`step_ms` that of so many requests, `prompts_ms` one of `batch_tokens`. Of another model they take as much more as it
has more layers, which the host launches one by one, and as the device takes longer for a token and a prompt of it.
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from effllm.models.costs import parameter_count
from effllm.planning.reference.decoding import Pace, pace
from effllm.planning.reference.rates import Reference, Row, all_of, beyond_size, good_for, rows
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
    steps = _Steps.of(shape, kind, weights_b, asked.engine, device)
    if steps is None:
        return None
    prompt, output = _mean(load.prompt_tokens), _mean(load.output_tokens)
    alone_s = asked.compared_requests * output * steps.token_s(1)
    seconds = _START_S + weights_b / _LOADED_B_PER_S + asked.idle_s + alone_s

    def together_s(count: int) -> float:
        """So many requests that begin at once, from their prompts to their last tokens."""
        return count * prompt * steps.prompt_token_s + output * steps.token_s(count)

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
    row = steps.row
    rate_of = f"steps of {row['run']} on {row['device']}, {good_for(float(row['parameters']))}"
    work += f"; power was not measured: {steps.power_w:.0f} W of decoding by CUDA graphs"
    return Reference(seconds, steps.power_w, row["device"], rate_of, work, steps.beyond)


class _Steps:
    """Steps of a model, from those of the measured one and the paces of both without an engine."""

    def __init__(self, row: Row, layers: float, known: Pace, beyond: str | None):
        self.row, self.beyond = row, beyond
        self.power_w = known.power_w(is_graph=True)
        self._scale = layers / float(row["layers"])
        self._token_ms = known.token_ms - float(row["bare_token_ms"])
        more_ms = (known.prefill_ms - float(row["bare_prompt_ms"])) / float(row["bare_prompt_tokens"])
        self.prompt_token_s = (self._scale * float(row["prompts_ms"]) / float(row["batch_tokens"]) + more_ms) / 1e3

    @classmethod
    def of(
        cls, shape: "Shape", kind: str, weights_b: float, engine: TransformersEngine, device: str
    ) -> "_Steps | None":
        attention = "own" if engine.flash_attention else "all"
        row = next(row for row in rows("serving") if row["attention"] == attention)
        known = pace(shape, kind, weights_b, int(row["bare_prompt_tokens"]), device)
        if known is None:
            return None
        text = shape.get_text_config() if hasattr(shape, "get_text_config") else shape
        doubts = [
            None if kind == row["kind"] else f"no serving of {kind} was measured",
            beyond_size(parameter_count(shape).total, float(row["parameters"])),
        ]
        return cls(row, float(text.num_hidden_layers), known, all_of(doubts))

    def token_s(self, requests: int) -> float:
        """Seconds of a step with so many requests: linear from a few to the measured number, and beyond it."""
        few_ms, step_ms, measured = (float(self.row[key]) for key in ("few_ms", "step_ms", "requests"))
        return (self._scale * (few_ms + (step_ms - few_ms) * requests / measured) + self._token_ms) / 1e3


def _mean(length: Length) -> float:
    if length.kind == "fixed":
        return float(length.tokens)
    if length.kind == "uniform":
        return (length.least + length.most) / 2
    return min(length.median * math.exp(length.sigma**2 / 2), float(length.most))
