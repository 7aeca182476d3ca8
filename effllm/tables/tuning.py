"""Table 13: methods of fine-tuning for images and videos, one row per pipeline and method."""

from collections.abc import Mapping
from typing import Any

from effllm.tables.artifacts import read_results
from effllm.tables.cells import Row
from effllm.tables.finetuning import (
    SETTINGS,
    FinetuningResult,
    set_costs,
    set_learned,
    set_time_and_energy,
    set_trained,
)
from effllm.tables.runs import finish, set_conditions


def tuning_table(spec: Mapping[str, Any], inputs: Mapping[str, list[str]]) -> list[dict[str, Any]]:
    """The rows of Table 13.

    `spec` is its `Graph.table_spec`; `inputs` are paths of manifests by stage. The paper's columns come first, in its
    order; docs/tables.md says what each column is.
    """
    results = read_results("tune", inputs["tune"])
    rows = []
    for line in spec["config"]["rows"]:
        row = Row()
        row.set("model", spec["model_labels"][line["model"]])
        row.set("method", spec["method_labels"][line["method"]])
        rows.append(_fill(row, FinetuningResult(results[line["run"]]), line["captions"]))
    return rows


def _fill(row: Row, run: FinetuningResult, captions: str) -> dict[str, Any]:
    set_costs(row, run)
    set_learned(row, run)
    row.set("captions", captions)
    set_trained(row, run)
    row.set("micro_batch", run.recipe["micro_batch_size"])
    row.set("steps", *run.total_steps())
    row.set("samples_seen", *run.quality("samples_seen"))
    set_time_and_energy(row, run)
    set_conditions(row, [run], SETTINGS)
    return finish(row, [run])
