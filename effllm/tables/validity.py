"""results/validity.csv: what the plausibility rules find in every artifact behind the study's tables."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from effllm.results.evaluation import Evaluation
from effllm.results.overlap import ItemsOverlap
from effllm.results.profile import Profile
from effllm.results.serving import Serving
from effllm.results.telemetry import Finding
from effllm.tables.accuracy import average_performance
from effllm.tables.artifacts import Result, read_results
from effllm.tables.diffusion import DiffusionResult
from effllm.tables.finetuning import FinetuningResult
from effllm.tables.pretraining import PretrainingResult
from effllm.tables.training import Training
from effllm.telemetry.validity import (
    check_batch,
    check_disturbance,
    check_equal,
    check_generation_settings,
    check_quantized_score,
    check_scores,
    check_throughput,
    check_token_count,
)

# What every method of a suite must have in common for its rows to be compared.
_SHARED_BY_METHODS = ("samples_per_step", "steps", "sample_order_sha256", "held_out_tokens")
COLUMNS = ("stage", "id", "rule", "severity", "message")


@dataclass(frozen=True)
class _Located:
    stage: str
    id: str
    finding: Finding

    def row(self) -> dict[str, str]:
        finding = self.finding
        return dict(zip(COLUMNS, (self.stage, self.id, finding.rule, finding.severity, finding.message), strict=True))


def validity(spec: Mapping[str, Any], inputs: Mapping[str, list[str]]) -> list[dict[str, Any]]:
    """One row per finding, errors first; no rows where every artifact is plausible.

    `spec` is `Graph.table_spec("validity")`: the rows of the study's tables of precisions, by table, and of fine-tuning
    methods, by suite. `inputs` names the artifacts of all its tables by stage; a stage that no table needs is not among
    them.
    """
    results = {stage: read_results(stage, paths) for stage, paths in inputs.items()}
    located = [
        *_failed_cells(results),
        *_profiles(results.get("profile", {})),
        *_loads(results.get("serve", {})),
        *_evaluations(results.get("evaluate", {})),
        *_overlaps(results.get("overlap", {})),
        *_training(results.get("pretrain", {}), PretrainingResult),
        *_training(results.get("finetune", {}), FinetuningResult),
        *_training(results.get("diffuse", {}), DiffusionResult),
    ]
    for table in spec["config"]["precisions"].values():
        located += _quantized_scores(table, results["evaluate"])
    for suite in spec["config"]["suites"].values():
        located += _fairness(suite, results["finetune"])
    # Two tables may share rows.
    rows = [item.row() for item in dict.fromkeys(located)]
    return sorted(rows, key=lambda row: (row["severity"] != "error", row["stage"], row["id"], row["rule"]))


def _failed_cells(results: Mapping[str, Mapping[str, Result[Any]]]) -> Iterator[_Located]:
    for stage, by_id in results.items():
        for id, result in by_id.items():
            if result.status != "ok":
                yield _Located(stage, id, Finding(result.status, "error", str(result.reason)))


def _training(results: Mapping[str, Result], kind: type[Training]) -> Iterator[_Located]:
    for id, result in results.items():
        for finding in kind(result).findings():
            yield _Located(result.manifest.stage, id, finding)


def _fairness(suite: Mapping[str, Any], results: Mapping[str, Result[Any]]) -> Iterator[_Located]:
    """Methods are compared on one model: each must have learned from the same samples in the same order and steps."""
    for model in suite["models"]:
        ids = {method: f"{model}.{suite['suite']}.{method}" for method in suite["methods"]}
        found = {method: results[id].content for method, id in ids.items()}
        contents = {method: content for method, content in found.items() if content is not None}
        for key in _SHARED_BY_METHODS:
            values = {method: content.cell(key)[0] for method, content in contents.items()}
            for finding in check_equal(key, values):
                yield _Located("finetune", f"{model}.{suite['suite']}", finding)


def _profiles(results: Mapping[str, Result[Profile]]) -> Iterator[_Located]:
    for id, result in results.items():
        if result.content is None:
            continue
        for name, workload in result.content.workloads.items():
            figures, asked = workload.figures, result.content.protocol.workloads[name]
            if figures is None or workload.telemetry is None:
                refused = Finding(f"{name}/{workload.status}", "error", str(workload.reason))
                yield _Located("profile", id, refused)
                continue
            tokens = asked.new_tokens * asked.batch_size * figures.generations
            findings = [*workload.findings, *check_token_count(tokens, figures.generated_tokens)]
            # Recomputed from the telemetry's own clock: it runs from edge to edge of the windows, pauses included.
            seconds = figures.generated_tokens / figures.throughput_tokens_per_s
            duration_s = workload.telemetry.generate.duration_s
            if seconds > duration_s:
                findings += check_throughput(figures.throughput_tokens_per_s, figures.generated_tokens, duration_s)
            for finding in findings:
                yield _Located("profile", id, Finding(f"{name}/{finding.rule}", finding.severity, finding.message))


def _loads(results: Mapping[str, Result[Serving]]) -> Iterator[_Located]:
    for id, result in results.items():
        for name, load in result.content.loads.items() if result.content else ():
            for finding in load.findings:
                yield _Located("serve", id, Finding(f"{name}/{finding.rule}", finding.severity, finding.message))


def _evaluations(results: Mapping[str, Result[Evaluation]]) -> Iterator[_Located]:
    for id, result in results.items():
        if result.content is None:
            continue
        telemetry = result.content.telemetry
        if telemetry.status != "ok":
            yield _Located("evaluate", id, Finding("instrument", "error", str(telemetry.reason)))
        for finding in check_disturbance(telemetry):
            yield _Located("evaluate", id, finding)
        for finding in check_generation_settings(result.content.ignored_generation_settings):
            yield _Located("evaluate", id, finding)
        for finding in check_batch(result.content.cost.batch_size, result.content.cost.batch_halvings):
            yield _Located("evaluate", id, finding)
        if result.content.role == "accuracy":
            for finding in check_scores({result.content.metric: result.content.score}):
                yield _Located("evaluate", id, finding)


def _overlaps(results: Mapping[str, Result[ItemsOverlap]]) -> Iterator[_Located]:
    for id, result in results.items():
        for finding in result.content.findings() if result.content else ():
            yield _Located("overlap", id, finding)


def _quantized_scores(table: Mapping[str, Any], results: Mapping[str, Result[Any]]) -> Iterator[_Located]:
    for model in table["models"]:
        base = _average(model, table["baseline"], table["benchmarks"], results)
        for precision in table["precisions"]:
            if precision == table["baseline"]:
                continue
            score = _average(model, precision, table["benchmarks"], results)
            for finding in check_quantized_score(score, base):
                yield _Located("evaluate", f"{model}.{precision}", finding)


def _average(model: str, precision: str, benchmarks: list[str], results: Mapping[str, Result[Any]]) -> float | None:
    return average_performance({id: results[f"{model}.{precision}.{id}"] for id in benchmarks}).mean
