"""Tables 3 to 6 and of orders of training: models trained from random weights, one row per method and size."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from effllm.intervals import Z95
from effllm.models.decoder.feed_forward import FEED_FORWARD
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
    throughput_of,
    time_weighted_mean,
)
from effllm.tables.training import Training
from effllm.telemetry.validity import Finding, check_throughput

_SETTINGS = ("dtype", "compile", "activation_checkpointing", "deterministic")


class PretrainingResult(Training):
    """One pretraining run."""

    @property
    def tokens_per_step(self) -> int:
        """Tokens per optimizer step, over all ranks."""
        return self.recipe["global_batch_size"] * self.recipe["sequence_length"]

    @property
    def experts_per_token(self) -> int | None:
        """Experts that the router chooses; None for a model without a mixture."""
        shape = self.recipe["architecture"]
        feed_forward = FEED_FORWARD.get(shape.get("feed_forward"))
        return feed_forward.experts_per_token(shape) if feed_forward else None

    @property
    def order(self) -> str:
        """In which order it took its text."""
        order = self.recipe.get("order")
        if order is None:
            return "random"
        parts = [f"{order['by']}, {order['first']} first"]
        if pacing := order["pacing"]:
            power = "" if pacing["exponent"] == 1 else f" by exponent {pacing['exponent']:g}"
            parts.append(f"from {pacing['start']:g} of it to all after {pacing['full_at']:g} of the steps{power}")
        if order["segments"] > 1:
            parts.append(f"in {order['segments']} segments")
        if order["share"] < 1:
            parts.append(f"for {order['share']:g} of the steps")
        return ", ".join(parts)

    def tokens(self) -> Cell:
        """Tokens of the measured steps, over all ranks."""
        steps, why = self.steps()
        return (steps * self.tokens_per_step if steps is not None else None), why

    def metered_tokens(self) -> Cell:
        """Tokens that the measured energy paid for."""
        steps, why = self.metered_steps()
        return (steps * self.tokens_per_step if steps is not None else None), why

    def findings(self) -> list[Finding]:
        """As of every training; and that its throughput is what tokens and wall time give."""
        findings = super().findings()
        tokens, _ = self.tokens()
        tokens_per_s, _ = self.efficiency("tokens_per_s")
        if tokens and tokens_per_s is not None:
            findings += check_throughput(tokens_per_s, tokens, self.seconds()[0])
        return findings


def pretraining_table(spec: Mapping[str, Any], inputs: Mapping[str, list[str]]) -> list[dict[str, Any]]:
    """The rows of a table of architectures.

    `spec` is `Graph.table_spec` of one of Tables 3 to 6; `inputs` are paths of manifests by stage. The paper's columns
    come first, in its order; docs/tables.md says what each column is.
    """
    results = read_results("pretrain", inputs["pretrain"])
    rows = [(row, [PretrainingResult(results[id]) for id in row["runs"]]) for row in spec["config"]["rows"]]
    has_mixture = any(run.experts_per_token for _, runs in rows for run in runs)
    has_order = any("order" in run.recipe for _, runs in rows for run in runs)
    return [_row(row, runs, has_mixture, has_order) for row, runs in rows]


def _row(
    labels: Mapping[str, Any], runs: Sequence[PretrainingResult], has_mixture: bool, has_order: bool
) -> dict[str, Any]:
    row = Row()
    # Runs of one row differ in their seed only: the first one's settings are everyone's.
    recipe = runs[0].recipe
    row.set("method", labels["method"])
    row.set("parameters", labels["parameters"])
    if has_mixture:
        row.set("top_k", runs[0].experts_per_token, "no mixture of experts")
    row.set("micro_batch", recipe["micro_batch_size"])
    row.set("context", recipe["sequence_length"])
    losses, why_no_loss = collect(runs, lambda run: run.quality("held_out_loss"))
    row.set("PPL", math.exp(mean(losses)) if losses else None, why_no_loss)
    row.set("AMU_GB", *time_weighted_mean(runs, lambda run: run.window.memory("avg")))
    row.set("AL_s_per_iter", *ratio(runs, Training.seconds, Training.steps))
    row.set("TT_tokens_per_param_s", *throughput_of(runs, PretrainingResult.tokens))
    row.set("AEC_W", *time_weighted_mean(runs, lambda run: run.window.figure("power_avg_w")))
    row.set("GPU_hours", *average(runs, Training.gpu_hours))
    _set_quality(row, runs)
    _set_size(row, runs)
    row.set("tokens_per_s", *ratio(runs, PretrainingResult.tokens, Training.seconds))
    set_efficiency(row, runs)
    energy = ratio(runs, lambda run: run.window.figure("energy_j"), PretrainingResult.metered_tokens)
    row.set("energy_J_per_token", *energy)
    row.set("training_hours", *average(runs, Training.hours))
    row.set("global_batch", recipe["global_batch_size"])
    if has_order:
        row.set("order", runs[0].order)
    row.set("runs", ", ".join(run.id for run in runs))
    row.set("seeds", ", ".join(str(run.recipe["seed"]) for run in runs))
    row.set("kernel", *shared_value(runs, Training.kernels))
    set_conditions(row, runs, _SETTINGS)
    return finish(row, runs)


def _set_quality(row: Row, runs: Sequence[PretrainingResult]) -> None:
    """Perplexity's intervals: over the held-out text, and over seeds where there are several."""
    losses, why = collect(runs, lambda run: run.quality("held_out_loss"))
    # Seeds are scored on one text, so their errors go together, and their mean is no surer than one of them.
    error, why_error = average(runs, lambda run: run.quality("held_out_loss_stderr"))
    for column, side in (("PPL_low", -Z95), ("PPL_high", Z95)):
        edge = math.exp(mean(losses) + side * error) if losses and error is not None else None
        row.set(column, edge, why or why_error)
    for column, (edge, why_edge) in zip(
        ("PPL_seeds_low", "PPL_seeds_high"), interval_over(runs, lambda run: run.quality("held_out_loss")), strict=True
    ):
        row.set(column, math.exp(edge) if edge is not None else None, why_edge)
    row.set("held_out_loss", mean(losses) if losses else None, why)
    row.set("held_out_bits_per_byte", *average(runs, lambda run: run.quality("held_out_bits_per_byte")))
    row.set("held_out_tokens", *shared_value(runs, lambda run: run.quality("held_out_tokens")))
    row.set("tokens_seen", *shared_value(runs, lambda run: run.quality("tokens_seen")))


def _set_size(row: Row, runs: Sequence[PretrainingResult]) -> None:
    for column, key in (
        ("parameters_total", "parameters"),
        ("parameters_active", "parameters_active"),
        ("parameters_without_embeddings", "parameters_without_embeddings"),
        ("cache_bytes_per_token", "cache_bytes_per_token"),
    ):
        row.set(column, *shared_value(runs, partial(PretrainingResult.quality, key=key)))
