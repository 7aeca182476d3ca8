"""What each table of a study is made of: its spec, and the nodes whose artifacts it reads."""

from collections.abc import Iterator
from typing import Any

from effllm.decision.paired import PAIRS, pairs_of
from effllm.errors import UserError
from effllm.fields import sort_keys
from effllm.study.models import FinetunedSource, PretrainedSource
from effllm.study.published import CLAIMS as CLAIMS_FILE
from effllm.study.published import published_digest, published_tables
from effllm.study.study import Study
from effllm.study.tables import FinetuningTable, InferenceTable, PretrainingTable, QuantizationTable

VALIDITY = "validity"
RANKS = "ranks"
COMPARISON = "comparison"
CLAIMS = "claims"
# Made of the other tables, and of the published values.
DECISIONS = (RANKS, COMPARISON, CLAIMS)
# Versions: raised by hand when a change of code alters a table. The pairs of each table are of one version.
TABLES = {
    "table3": 2,
    "table4": 2,
    "table5": 2,
    "table6": 2,
    "table7": 2,
    "table8": 2,
    "table9": 3,
    "table16": 3,
    VALIDITY: 2,
    PAIRS: 1,
    RANKS: 1,
    COMPARISON: 1,
    CLAIMS: 1,
}


def defined_tables(study: Study) -> list[str]:
    """Names of the tables that the study defines; what is made of all of them goes with any."""
    defined = _own_tables(study)
    return [*defined, *map(pairs_of, defined), VALIDITY, PAIRS, *DECISIONS] if defined else []


def table_spec(study: Study, name: str) -> dict[str, Any]:
    """What decides a table, beside the artifacts it reads: its rows, columns and labels."""
    version = TABLES[PAIRS if _paired_table(name) else name]
    return sort_keys({"table": name, "version": version, "study": study.name, **_content(study, name)})


def table_nodes(study: Study, name: str) -> dict[str, list[str]]:
    """Ids of the nodes that a table reads, by stage, each once."""
    if name == PAIRS or name in DECISIONS:
        return {}
    if name == VALIDITY:
        return _all_nodes(study)
    table = _table(study, _paired_table(name) or name)
    if isinstance(table, PretrainingTable):
        return {"pretrain": [run for row in table.rows for run in row.runs]}
    if isinstance(table, FinetuningTable):
        return {"finetune": study.finetuning[table.suite].nodes(table.suite)}
    variants = [f"{model}.{precision}" for model in table.models for precision in table.precisions]
    nodes = {"evaluate": [f"{variant}.{benchmark}" for variant in variants for benchmark in table.benchmarks]}
    return nodes | {"quantize": variants, "profile": variants} if isinstance(table, InferenceTable) else nodes


def table_tables(study: Study, name: str) -> dict[str, list[str]]:
    """Names of the tables that a table is made of, by the name of the input; none for one that reads artifacts."""
    own = _own_tables(study)
    paired = {PAIRS: list(map(pairs_of, own))}
    if name == PAIRS:
        return paired
    return {"tables": own, **paired} if name in DECISIONS else {}


def measured_nodes(study: Study) -> frozenset[tuple[str, str]]:
    """Stage and id of the trainings whose own time, memory and power are columns of a table."""
    nodes = [table_nodes(study, name) for name, table in study.tables if table]
    stages = ("pretrain", "finetune")
    return frozenset((stage, id) for found in nodes for stage in stages for id in found.get(stage, ()))


def _content(study: Study, name: str) -> dict[str, Any]:
    if name == VALIDITY:
        # Rules that compare artifacts with each other need the rows of their tables.
        precisions = {other: table.plain() for other, table in study.tables if isinstance(table, QuantizationTable)}
        suites = {table.suite: _suite(study, table) for _, table in study.tables if isinstance(table, FinetuningTable)}
        return {"config": {"precisions": precisions, "suites": suites}}
    if name == PAIRS:
        return {"config": {}}
    if paired := _paired_table(name):
        return {**_content(study, paired), "of": paired, "baseline": _baseline(study, paired)}
    if name in DECISIONS:
        return {"config": _decision(study, name)}
    table = _table(study, name)
    if isinstance(table, PretrainingTable):
        # What a row is compared with changes no row.
        return {"config": {key: value for key, value in table.plain().items() if key != "baseline"}}
    if isinstance(table, FinetuningTable):
        suite = study.finetuning[table.suite]
        return {
            "config": _suite(study, table),
            "model_labels": {id: study.models[id].label or id for id in suite.models},
            "method_labels": {id: study.methods[id].label or id for id in suite.methods},
        }
    return {
        "config": table.plain(),
        "model_labels": {id: study.models[id].label or id for id in table.models},
        "benchmark_labels": {id: study.benchmarks[id].label or id for id in table.benchmarks},
    }


def _decision(study: Study, name: str) -> dict[str, Any]:
    """Of what is made of tables: the published files by their content, and what a comparison has to know of each table.

    Ranks take the published tables that the study has; findings and claims concern them all.
    """
    own = _own_tables(study)
    published = [table for table in published_tables() if name != RANKS or table in own]
    config: dict[str, Any] = {"published": {table: published_digest(f"{table}.csv") for table in published}}
    if name == CLAIMS:
        config["claims"] = published_digest(CLAIMS_FILE)
    if name == COMPARISON:
        config["tables"] = {
            table: {"baseline": _baseline_label(study, table), "benchmarks": _benchmarks(study, table)} for table in own
        }
    return config


def _baseline_label(study: Study, name: str) -> str:
    """The baseline as the rows of the table name it."""
    baseline = _baseline(study, name)
    return (study.methods[baseline].label or baseline) if isinstance(_table(study, name), FinetuningTable) else baseline


def _benchmarks(study: Study, name: str) -> list[str]:
    """Labels of a table's benchmarks."""
    return [study.benchmarks[id].label or id for id in getattr(_table(study, name), "benchmarks", [])]


def _suite(study: Study, table: FinetuningTable) -> dict[str, Any]:
    suite = study.finetuning[table.suite]
    return {"suite": table.suite, "models": suite.models, "methods": suite.methods}


def _paired_table(name: str) -> str | None:
    """The table whose pairs a table has; None for any other."""
    table = name.removesuffix(pairs_of(""))
    return table if table != name else None


def _table(study: Study, name: str) -> PretrainingTable | FinetuningTable | QuantizationTable:
    table: PretrainingTable | FinetuningTable | QuantizationTable | None = getattr(study.tables, name, None)
    if table is None:
        raise UserError(f"tables.{name}: the study {study.name!r} does not define it; add it to the study.")
    return table


def _own_tables(study: Study) -> list[str]:
    return [name for name, table in study.tables if table]


def _baseline(study: Study, name: str) -> str:
    """The method, or the precision, that the other rows of a table are compared with."""
    table = _table(study, name)
    if isinstance(table, PretrainingTable):
        return table.baseline or table.rows[0].method
    if isinstance(table, FinetuningTable):
        return table.baseline or study.finetuning[table.suite].methods[0]
    return table.baseline


def _nodes_of_tables(study: Study) -> dict[str, list[str]]:
    """The nodes of every table, each once."""
    nodes: dict[str, dict[str, None]] = {}
    for name in _own_tables(study):
        for stage, ids in table_nodes(study, name).items():
            nodes.setdefault(stage, {}).update(dict.fromkeys(ids))
    return {stage: list(ids) for stage, ids in nodes.items()}


def _all_nodes(study: Study) -> dict[str, list[str]]:
    """The nodes of every table, and the training runs behind its models."""
    nodes = {stage: dict.fromkeys(ids) for stage, ids in _nodes_of_tables(study).items()}
    for name in _own_tables(study):
        table = _table(study, name)
        rows = study.finetuning[table.suite] if isinstance(table, FinetuningTable) else table
        for model in getattr(rows, "models", []):
            for stage, id in _training_behind(study, model):
                nodes.setdefault(stage, {})[id] = None
    return {stage: list(ids) for stage, ids in nodes.items()}


def _training_behind(study: Study, model: str) -> Iterator[tuple[str, str]]:
    source = study.models[model].source
    if isinstance(source, PretrainedSource):
        yield "pretrain", source.run
    if isinstance(source, FinetunedSource):
        yield "finetune", source.node
        yield from _training_behind(study, source.model)
