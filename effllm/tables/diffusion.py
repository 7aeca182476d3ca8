"""Tables 10 and 11: diffusion transformers trained from random weights, one row per model and technique."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from effllm.intervals import Z95
from effllm.models.dit.architecture import DiTArchitecture
from effllm.tables.artifacts import read_results
from effllm.tables.cells import Cell, Row, mean
from effllm.tables.runs import (
    average,
    collect,
    finish,
    interval_over,
    ratio,
    set_conditions,
    set_efficiency,
    shared_value,
    time_weighted_mean,
)
from effllm.tables.training import Training
from effllm.telemetry.metrics import token_throughput
from effllm.telemetry.validity import Finding, check_throughput

_SETTINGS = ("dtype", "compile", "activation_checkpointing", "deterministic")


class DiffusionResult(Training):
    """One run of diffusion."""

    def images(self) -> Cell:
        """Images of the measured steps, over all ranks."""
        steps, why = self.steps()
        return (steps * self.recipe["global_batch_size"] if steps is not None else None), why

    def metered_images(self) -> Cell:
        """Images that the measured energy paid for."""
        steps, why = self.metered_steps()
        return (steps * self.recipe["global_batch_size"] if steps is not None else None), why

    def tokens(self) -> Cell:
        """Their patches."""
        images, why = self.images()
        patches, why_patches = self.quality("tokens_per_image")
        return (images * patches if images is not None and patches is not None else None), why or why_patches

    @property
    def experts(self) -> Cell:
        """The mixture in a phrase."""
        shape = DiTArchitecture.model_validate(self.recipe["architecture"])
        if shape.feed_forward != "moe":
            return None, "no mixture of experts"
        width = shape.shape().moe_intermediate_size
        return f"{shape.num_experts} of {width} (SwiGLU), top {shape.num_experts_per_tok}", None

    def findings(self) -> list[Finding]:
        """As of every training; and that its throughput is what patches and wall time give."""
        findings = super().findings()
        tokens, _ = self.tokens()
        tokens_per_s, _ = self.efficiency("tokens_per_s")
        if tokens and tokens_per_s is not None:
            findings += check_throughput(tokens_per_s, tokens, self.seconds()[0])
        return findings


def diffusion_table(spec: Mapping[str, Any], inputs: Mapping[str, list[str]]) -> list[dict[str, Any]]:
    """The rows of Table 10 or 11.

    `spec` is its `Graph.table_spec`; `inputs` are paths of manifests by stage. The paper's columns come first, in its
    order; docs/tables.md says what each column is.
    """
    results = read_results("diffuse", inputs["diffuse"])
    rows = [(row, [DiffusionResult(results[id]) for id in row["runs"]]) for row in spec["config"]["rows"]]
    has_mixture = any(run.experts[0] for _, runs in rows for run in runs)
    return [_row(row, runs, has_mixture) for row, runs in rows]


def _row(labels: Mapping[str, Any], runs: Sequence[DiffusionResult], has_mixture: bool) -> dict[str, Any]:
    row = Row()
    # Runs of one row differ in their seed only: the first one's settings are everyone's.
    recipe = runs[0].recipe
    row.set("model", labels["model"])
    row.set("method", labels["method"])
    row.set("FID", None, "no images are sampled from it")
    row.set("AMU_GB", *time_weighted_mean(runs, lambda run: run.window.memory("avg")))
    row.set("AL_s_per_iter", *ratio(runs, Training.seconds, Training.steps))
    row.set("TT_tokens_per_param_s", *_token_throughput(runs))
    row.set("AEC_W", *time_weighted_mean(runs, lambda run: run.window.figure("power_avg_w")))
    row.set("tokens_per_image", *shared_value(runs, partial(DiffusionResult.quality, key="tokens_per_image")))
    row.set("tokens_per_s", *ratio(runs, DiffusionResult.tokens, Training.seconds))
    row.set("images_per_s", *ratio(runs, DiffusionResult.images, Training.seconds))
    _set_quality(row, runs)
    row.set("parameters_total", *shared_value(runs, partial(DiffusionResult.quality, key="parameters")))
    row.set("parameters_active", *shared_value(runs, partial(DiffusionResult.quality, key="parameters_active")))
    if has_mixture:
        row.set("experts", *runs[0].experts)
    set_efficiency(row, runs)
    energy = ratio(runs, lambda run: run.window.figure("energy_j"), DiffusionResult.metered_images)
    row.set("energy_J_per_image", *energy)
    row.set("GPU_hours", *average(runs, Training.gpu_hours))
    row.set("training_hours", *average(runs, Training.hours))
    row.set("objective", recipe["objective"]["kind"])
    row.set("micro_batch", recipe["micro_batch_size"])
    row.set("global_batch", recipe["global_batch_size"])
    row.set("runs", ", ".join(run.id for run in runs))
    row.set("seeds", ", ".join(str(run.recipe["seed"]) for run in runs))
    row.set("kernel", *shared_value(runs, Training.kernels))
    set_conditions(row, runs, _SETTINGS)
    return finish(row, runs)


def _token_throughput(runs: Sequence[DiffusionResult]) -> Cell:
    """TT over the measured steps of all runs, in patches per parameter and s; every parameter counts, active or not."""
    tokens, why = collect(runs, DiffusionResult.tokens)
    seconds, why_seconds = collect(runs, Training.seconds)
    parameters, why_parameters = shared_value(runs, lambda run: run.quality("parameters"))
    if tokens is None or seconds is None or parameters is None:
        return None, why or why_seconds or why_parameters
    return token_throughput(tokens, parameters, seconds), None


def _set_quality(row: Row, runs: Sequence[DiffusionResult]) -> None:
    """The held-out loss and its intervals: over images, and over seeds where there are several."""
    losses, why = collect(runs, lambda run: run.quality("held_out_loss"))
    # Seeds are scored on the same images and draws, so their errors go together.
    error, why_error = average(runs, lambda run: run.quality("held_out_loss_stderr"))
    row.set("held_out_loss", mean(losses) if losses else None, why)
    for column, side in (("held_out_loss_low", -Z95), ("held_out_loss_high", Z95)):
        row.set(column, mean(losses) + side * error if losses and error is not None else None, why or why_error)
    ends = interval_over(runs, lambda run: run.quality("held_out_loss"))
    for column, (edge, why_edge) in zip(("held_out_loss_seeds_low", "held_out_loss_seeds_high"), ends, strict=True):
        row.set(column, edge, why_edge)
    row.set("held_out_images", *shared_value(runs, lambda run: run.quality("held_out_images")))
    row.set("images_seen", *shared_value(runs, lambda run: run.quality("images_seen")))
