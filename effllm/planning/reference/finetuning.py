"""Fine-tuning by the tokens per second of each method, in FLOPs of training every parameter."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from effllm.models.costs import forward_flops, parameter_count, training_flops
from effllm.planning.reference.rates import Reference, Row, all_of, beyond_size, good_for, rows
from effllm.telemetry.peaks import peak_flops_per_s

if TYPE_CHECKING:
    from effllm.models.costs.shapes import Shape

# MFU of full fine-tuning in docs/results/h100/table7.csv; the others' tokens per second are compared with its own.
_FULL_MFU = 0.298954
_RECOMPUTED = 4 / 3
# From the start of the stage to the first steady step.
_START_S = 8.0


def finetuning(config: Mapping[str, Any], shape: "Shape", samples: int, device: str) -> Reference | None:
    """Time of a fine-tuning node over so many training samples, each at its full length."""
    peak = peak_flops_per_s(device, "bfloat16")
    if peak is None:
        return None
    kind, parallel = config["method"]["kind"], config["parallel"]
    row = _row_of(kind, bool(parallel.get("offload")))
    full = next(row for row in rows("finetune") if row["method"] == "full" and row["offload"] == "false")
    share = _FULL_MFU * float(row["tokens_per_s"]) / float(full["tokens_per_s"])
    length, batch = config["encoding"]["sequence_length"], config["samples_per_step"]
    steps = config["max_steps"] or config["epochs"] * (samples // batch)
    flops = steps * batch * training_flops(shape, length)
    if config.get("activation_checkpointing"):
        flops = int(flops * _RECOMPUTED)
    # Held-out samples are scored before and after.
    scored = 2 * (config.get("held_out_samples") or 0) * forward_flops(shape, length)
    devices = parallel["devices"] * parallel["nodes"]
    parameters, measured = parameter_count(shape).total, float(row["parameters"])
    rate = f"{float(row['tokens_per_s']):,.0f} tokens/s of {row['run']} on {row['device']}, {good_for(measured)}"
    work = f"{steps:,} steps, every sample at its full {length:,} tokens, so at most"
    doubts = [
        None if row["method"] == kind else f"no run of {kind} was measured",
        beyond_size(parameters, measured),
    ]
    seconds = _START_S + (flops + scored) / (peak * share * devices)
    return Reference(seconds, float(row["power_w"]), row["device"], rate, work, all_of(doubts))


def _row_of(kind: str, offload: bool) -> Row:
    """The measured run of a method; the slowest of those that fit into one device where there is none."""
    found = [row for row in rows("finetune") if row["method"] == kind and (row["offload"] == "true") == offload]
    slowest = min((r for r in rows("finetune") if r["offload"] == "false"), key=lambda row: float(row["tokens_per_s"]))
    return found[0] if found else slowest
