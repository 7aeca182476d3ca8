"""How long a model reads a prompt and writes a token: a time per layer, and bytes or FLOPs at the device's peaks.

Both terms follow from two measured sizes of equal depth. Where the library generates, the host's dispatch sets the
pace, so many milliseconds a layer, until the device takes longer.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from effllm.models.costs import forward_flops, parameter_count
from effllm.planning.reference.rates import Row, all_of, beyond_size, good_for, nearest, rows
from effllm.telemetry.peaks import peak_bandwidth_b_per_s, peak_flops_per_s

if TYPE_CHECKING:
    from effllm.models.costs.shapes import Shape


@dataclass(frozen=True)
class Pace:
    """Milliseconds of one forward pass: per layer, at least, and by the device; and the run that they are from."""

    row: Row
    host_ms: float
    token_ms: float
    prefill_ms: float
    beyond: str | None

    def forward_ms(self, is_prefill: bool, is_graph: bool, sequences: int = 1) -> float:
        """One prompt of the measured length for each sequence, or one token."""
        by_device = self.prefill_ms * sequences if is_prefill else self.token_ms
        return by_device if is_graph else max(by_device, self.host_ms)

    def power_w(self, is_graph: bool) -> float:
        """Power of the device while it decodes."""
        return float(self.row["power_w" if is_graph else "generate_power_w"])

    @property
    def rate(self) -> str:
        """Where the pace comes from and what it is good for."""
        return f"decoding of {self.row['run']} on {self.row['device']}, {good_for(float(self.row['parameters']))}"


def pace(shape: "Shape", kind: str, weights_b: float, prompt_tokens: int, device: str) -> Pace | None:
    """The pace of a model in a precision of this kind; None for a device without peaks or a model without layers."""
    bandwidth, peak = peak_bandwidth_b_per_s(device), peak_flops_per_s(device, "bfloat16")
    text = shape.get_text_config() if hasattr(shape, "get_text_config") else shape
    layers = getattr(text, "num_hidden_layers", None)
    if bandwidth is None or peak is None or layers is None:
        return None
    parameters = parameter_count(shape).total
    # Packed weights of a kind that was not measured are taken for GPTQ's.
    is_measured = kind in {row["kind"] for row in rows("decoding")}
    found = [row for row in rows("decoding") if row["kind"] == (kind if is_measured else "gptq")]
    row = nearest(found, parameters)
    small, large = (choose(found, key=lambda row: float(row["weight_bytes"])) for choose in (min, max))
    measured_bandwidth, measured_peak = (
        peak_bandwidth_b_per_s(row["device"]),
        peak_flops_per_s(row["device"], "float16"),
    )
    assert measured_bandwidth is not None and measured_peak is not None
    token_ms, per_b = _two_terms(small, large, "graph_token_ms", "weight_bytes")
    prefill_ms, per_parameter = _two_terms(small, large, "graph_prefill_ms", "parameters")
    # A prompt's FLOPs are as its parameters and tokens; of attention to it, no more than this is counted.
    prompts = prompt_tokens / float(row["prompt_tokens"])
    return Pace(
        row,
        host_ms=float(row["generate_token_ms"]) / float(row["layers"]) * layers,
        token_ms=token_ms * layers + per_b * weights_b * measured_bandwidth / bandwidth,
        prefill_ms=prefill_ms * layers + per_parameter * parameters * prompts * measured_peak / peak,
        beyond=all_of(
            [
                None if is_measured else f"no decoding of {kind} was measured",
                beyond_size(parameters, float(row["parameters"])),
            ]
        ),
    )


def reading_s(shape: "Shape", sequences: int, length: int, device: str) -> tuple[float, str, str | None] | None:
    """Seconds to score so many texts of this length, where it is from, and why that is not good for the model."""
    peak = peak_flops_per_s(device, "bfloat16")
    if peak is None:
        return None
    (row,) = rows("scoring")
    measured_peak = peak_flops_per_s(row["device"], "bfloat16")
    assert measured_peak is not None
    measured = float(row["parameters"])
    per_s = 2 * measured * int(row["items"]) * int(row["prompt_tokens"]) / float(row["seconds"]) / measured_peak
    seconds = sequences * forward_flops(shape, length) / (per_s * peak)
    rate = f"scoring at {per_s:.2f} of the peak, {row['run']} on {row['device']}, {good_for(measured)}"
    return seconds, rate, beyond_size(parameter_count(shape).total, measured)


def _two_terms(small: Row, large: Row, figure: str, size: str) -> tuple[float, float]:
    """Milliseconds a layer, and a unit of `size`, of a figure that two models of equal depth have."""
    slope = (float(large[figure]) - float(small[figure])) / (float(large[size]) - float(small[size]))
    return (float(small[figure]) - slope * float(small[size])) / float(small["layers"]), slope
