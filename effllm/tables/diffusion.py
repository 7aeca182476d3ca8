"""Tables 10 and 11: diffusion transformers trained from random weights, one row per model and technique."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from effllm.intervals import Z95
from effllm.models.dit.architecture import DiTArchitecture
from effllm.results.fidelity import FidelityResult, SampleSummary
from effllm.results.training import DiffusionQuality
from effllm.tables.artifacts import Result, read_results
from effllm.tables.cells import Cell, Row, mean
from effllm.tables.runs import (
    average,
    collect,
    finish,
    highest,
    interval_over,
    ratio,
    set_conditions,
    set_efficiency,
    shared_value,
    throughput_of,
    time_weighted_mean,
)
from effllm.tables.training import Training
from effllm.telemetry.validity import Finding, check_throughput

_NO_FIDELITY = "the table names no fidelity"
# Of fidelity.json, by column: its figure, whose interval over seeds of the noise stands beside it.
_DISTANCES = {
    "FID": "frechet_distance",
    "KID": "kernel_distance",
    "precision": "precision",
    "recall": "recall",
    "label_agreement": "label_agreement",
}
_SETTINGS = ("dtype", "compile", "activation_checkpointing", "deterministic")


class DiffusionResult(Training):
    """One run of diffusion, and what was found of the images that were sampled from it."""

    def __init__(
        self,
        result: Result[DiffusionQuality],
        sample: Result[SampleSummary] | None = None,
        fidelity: Result[FidelityResult] | None = None,
    ):
        super().__init__(result)
        self.sample, self.fidelity = sample, fidelity

    def distance(self, key: str) -> Cell:
        """A figure of fidelity.json."""
        if self.fidelity is None:
            return None, _NO_FIDELITY
        content = self.fidelity.content
        return content.cell(key) if content is not None else (None, self.fidelity.absent)

    def sampling(self, key: str) -> Cell:
        """A figure of records/sampling.json, where it may be ranked."""
        if self.sample is None:
            return None, _NO_FIDELITY
        cost = self.sample.record
        if cost is None:
            return None, self.sample.absent
        return cost.cell(key) if cost.status == "ok" else (None, f"sampling was {cost.status}: {cost.reason}")

    def sampler(self) -> Cell:
        """How images were sampled, in a phrase."""
        if self.sample is None:
            return None, _NO_FIDELITY
        made = self.sample.content
        if made is None:
            return None, self.sample.absent
        return f"{made.sampler}, {made.steps} steps, guidance {made.guidance:g}", None

    def features(self) -> Cell:
        """In the features of which network images were compared, in a phrase."""
        found = self.fidelity.content if self.fidelity else None
        if found is None:
            return self.distance("features")
        accuracy = "" if found.features_accuracy is None else f", accuracy {found.features_accuracy:.3g}"
        return f"{found.features} ({found.features_kind}, {found.features_width} features{accuracy})", None

    def floor(self) -> Cell:
        """The Frechet distance that real images have."""
        found = self.fidelity.content if self.fidelity else None
        return self.distance("floor") if found is None else (found.floor.frechet_distance, None)

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
        return findings + [replace(finding, severity="warning") for finding in self._of_images()]

    def _of_images(self) -> list[Finding]:
        """What is to know of the sampled images: it leaves the training valid, and cells of sampling empty."""
        cost = self.sample.record if self.sample else None
        compared = self.fidelity.content if self.fidelity else None
        return [*(cost.findings if cost else ()), *(compared.findings if compared else ())]


def diffusion_table(spec: Mapping[str, Any], inputs: Mapping[str, list[str]]) -> list[dict[str, Any]]:
    """The rows of Table 10 or 11.

    `spec` is its `Graph.table_spec`; `inputs` are paths of manifests by stage. The paper's columns come first, in its
    order; docs/tables.md says what each column is.
    """
    trained, samples, compared = (
        read_results(stage, inputs.get(stage, ())) for stage in ("diffuse", "sample", "fidelity")
    )
    sampling, fidelity = spec.get("sampling"), spec["config"]["fidelity"]
    rows = []
    for row in spec["config"]["rows"]:
        of_run = (
            DiffusionResult(trained[id], samples.get(f"{id}.{sampling}"), compared.get(f"{id}.{fidelity}"))
            for id in row["runs"]
        )
        rows.append((row, list(of_run)))
    has_mixture = any(run.experts[0] for _, runs in rows for run in runs)
    return [_row(row, runs, has_mixture) for row, runs in rows]


def _row(labels: Mapping[str, Any], runs: Sequence[DiffusionResult], has_mixture: bool) -> dict[str, Any]:
    row = Row()
    # Runs of one row differ in their seed only: the first one's settings are everyone's.
    recipe = runs[0].recipe
    row.set("model", labels["model"])
    row.set("method", labels["method"])
    row.set("FID", *average(runs, lambda run: run.distance("frechet_distance")))
    row.set("AMU_GB", *time_weighted_mean(runs, lambda run: run.window.memory("avg")))
    row.set("AL_s_per_iter", *ratio(runs, Training.seconds, Training.steps))
    row.set("TT_tokens_per_param_s", *throughput_of(runs, DiffusionResult.tokens))
    row.set("AEC_W", *time_weighted_mean(runs, lambda run: run.window.figure("power_avg_w")))
    row.set("tokens_per_image", *shared_value(runs, partial(DiffusionResult.quality, key="tokens_per_image")))
    row.set("tokens_per_s", *ratio(runs, DiffusionResult.tokens, Training.seconds))
    row.set("images_per_s", *ratio(runs, DiffusionResult.images, Training.seconds))
    _set_fidelity(row, runs)
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


def _set_fidelity(row: Row, runs: Sequence[DiffusionResult]) -> None:
    """How close sampled images come to real ones, and what sampling costs."""
    for column, key in _DISTANCES.items():
        figure = partial(DiffusionResult.distance, key=key)
        row.set(column, *average(runs, figure))
        ends = _interval_of(runs, key)
        for side, (edge, why) in zip(("low", "high"), ends, strict=True):
            row.set(f"{column}_{side}", edge, why)
    row.set("FID_floor", *shared_value(runs, DiffusionResult.floor))
    row.set("fidelity_images", *shared_value(runs, partial(DiffusionResult.distance, key="images")))
    row.set("fidelity_seeds", *shared_value(runs, partial(DiffusionResult.distance, key="seeds")))
    row.set("fidelity_reference", *shared_value(runs, partial(DiffusionResult.distance, key="reference")))
    row.set("features", *shared_value(runs, DiffusionResult.features))
    row.set("sampler", *shared_value(runs, DiffusionResult.sampler))
    row.set("sampling_images_per_s", *average(runs, lambda run: run.sampling("images_per_s")))
    interval, why = runs[0].sampling("images_per_s_ci95") if len(runs) == 1 else (None, "several runs")
    low, high = interval or (None, None)
    row.set("sampling_images_per_s_low", low, why)
    row.set("sampling_images_per_s_high", high, why)
    row.set("sampling_J_per_image", *average(runs, lambda run: run.sampling("energy_j_per_image")))
    row.set("sampling_memory_GB", *highest(runs, lambda run: run.sampling("memory_peak_gb")))


def _interval_of(runs: Sequence[DiffusionResult], key: str) -> tuple[Cell, Cell]:
    """Ends of a distance's 95 % interval: over runs, or of one run over the seeds of its images' noise."""
    if len(runs) > 1:
        return interval_over(runs, partial(DiffusionResult.distance, key=key))
    interval, why = runs[0].distance(f"{key}_ci95")
    low, high = interval or (None, None)
    return (low, why), (high, why)


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
