"""Table 16: Table 9's scores by benchmark, one row per model and precision."""

from collections.abc import Mapping
from typing import Any

from effllm.results.overlap import ItemsOverlap
from effllm.tables.accuracy import average_performance, better
from effllm.tables.artifacts import Result, read_results
from effllm.tables.cells import Cell, Row
from effllm.tables.conditions import software
from effllm.tables.window import disturbances
from effllm.telemetry.validity import status_of


def scores_by_benchmark(spec: Mapping[str, Any], inputs: Mapping[str, list[str]]) -> list[dict[str, Any]]:
    """The rows of Table 16: scores under the benchmarks' names, their mean, then intervals, chance and cost.

    The mean is over accuracy benchmarks; a perplexity stands in its own column and is in no mean.
    """
    results = read_results("evaluate", inputs["evaluate"])
    overlaps: dict[str, Result[ItemsOverlap]] = read_results("overlap", inputs.get("overlap", []))
    config = spec["config"]
    rows = []
    for model in config["models"]:
        for precision in config["precisions"]:
            cells = {id: results[f"{model}.{precision}.{id}"] for id in config["benchmarks"]}
            row = Row()
            row.set("model", spec["model_labels"][model])
            row.set("precision", precision)
            reasons = {id: f"{cell.status}: {cell.reason}" for id, cell in cells.items()}
            for id, cell in cells.items():
                row.set(spec["benchmark_labels"][id], cell.content.score if cell.content else None, reasons[id])
            average = average_performance(cells)
            row.set("mean", average.mean, average.reason)
            average.set_interval(row, "mean")
            for id, cell in cells.items():
                content = cell.content
                interval = (content.ci95 if content else None) or (None, None)
                no_interval = "lm-eval gives no standard error" if content else reasons[id]
                row.set(f"{id}_metric", content.metric if content else None, reasons[id])
                row.set(f"{id}_low", interval[0], no_interval)
                row.set(f"{id}_high", interval[1], no_interval)
                row.set(f"{id}_chance", content.chance_level if content else None, reasons[id])
                row.set(f"{id}_better", *better(cell))
                row.set(f"{id}_items", content.items if content else None, reasons[id])
                row.set(f"{id}_items_in_training", *_covered(overlaps, id, spec["corpora"].get(model)))
                disturbed = status_of(disturbances({id: cell}))[1]
                latency_ms = content.cost.latency_mean_ms if content and not disturbed else None
                row.set(f"{id}_latency_ms", latency_ms, disturbed or reasons[id])
            row.set("software", *software(cells.values()))
            status = next((cell for cell in cells.values() if cell.status != "ok"), None)
            rows.append(row.finish(status.status if status else "ok", status.reason if status else None))
    return rows


def _covered(overlaps: Mapping[str, Result[ItemsOverlap]], benchmark: str, corpus: str | None) -> Cell:
    if corpus is None:
        return None, "the text that the model was trained on is not this study's"
    overlap = overlaps[f"{benchmark}.{corpus}"]
    return (overlap.content.items_covered, None) if overlap.content else (None, overlap.absent)
