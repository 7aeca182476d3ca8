"""What each table of a study is made of: its spec, and the nodes whose artifacts it reads."""

from collections.abc import Iterator
from typing import Any

from effllm.decision.paper import CLAIMS as CLAIMS_FILE
from effllm.decision.paper import published_digest, published_tables
from effllm.errors import UserError
from effllm.fields import sort_keys
from effllm.study.models import FinetunedSource, PretrainedSource
from effllm.study.study import Study
from effllm.tables.kinds import TABLES
from effllm.tables.kinds.kind import Table
from effllm.tables.paired import PAIRS, pairs_of

VALIDITY = "validity"
RANKS = "ranks"
COMPARISON = "comparison"
CLAIMS = "claims"
SCALING = "scaling"
CROSSOVER = "crossover"
# Made of the other tables, and of the published values.
DECISIONS = (RANKS, COMPARISON, CLAIMS)
# Of what CROSSOVER is made, where a study has it.
_PRECISIONS = "table9"
# Versions of what is made of the tables; theirs are in the registry. Raised by hand, as they are.
_VERSIONS = {VALIDITY: 3, PAIRS: 1, RANKS: 1, COMPARISON: 1, CLAIMS: 1, SCALING: 1, CROSSOVER: 1}


def defined_tables(study: Study) -> list[str]:
    """Names of the tables that the study defines; what is made of all of them goes with any."""
    defined = list(study.tables.defined())
    scaling = [SCALING] if study.scaling else []
    crossover = [CROSSOVER] if _PRECISIONS in defined else []
    return [*defined, *map(pairs_of, defined), *scaling, VALIDITY, PAIRS, *DECISIONS, *crossover] if defined else []


def table_spec(study: Study, name: str) -> dict[str, Any]:
    """What decides a table, beside the artifacts it reads: its rows, columns and labels."""
    version = TABLES[name].version if name in TABLES else _VERSIONS[PAIRS if _paired_table(name) else name]
    return sort_keys({"table": name, "version": version, "study": study.name, **_content(study, name)})


def table_nodes(study: Study, name: str) -> dict[str, list[str]]:
    """Ids of the nodes that a table reads, by stage, each once."""
    if name in (PAIRS, CROSSOVER, *DECISIONS):
        return {}
    if name == VALIDITY:
        return _all_nodes(study)
    if name == SCALING and study.scaling:
        return {"pretrain": study.scaling.runs(study)}
    return _table(study, _paired_table(name) or name).nodes(study)


def table_tables(study: Study, name: str) -> dict[str, list[str]]:
    """Names of the tables that a table is made of, by the name of the input; none for one that reads artifacts."""
    own = list(study.tables.defined())
    paired = {PAIRS: list(map(pairs_of, own))}
    if name == PAIRS:
        return paired
    if name == CROSSOVER:
        return {"tables": [_PRECISIONS], PAIRS: [pairs_of(_PRECISIONS)]}
    return {"tables": own, **paired} if name in DECISIONS else {}


def nodes_in_tables(study: Study) -> frozenset[tuple[str, str]]:
    """Stage and id of the nodes that the study's own tables read."""
    nodes = [table.nodes(study) for table in study.tables.defined().values()]
    return frozenset((stage, id) for found in nodes for stage, ids in found.items() for id in ids)


def _content(study: Study, name: str) -> dict[str, Any]:
    if name == VALIDITY:
        # Rules that compare artifacts with each other need the rows of their tables.
        rules: dict[str, dict[str, Any]] = {"precisions": {}, "suites": {}}
        for other, table in study.tables.defined().items():
            for kind, compared in table.rules(study, other).items():
                rules.setdefault(kind, {}).update(compared)
        return {"config": rules}
    if name == SCALING and study.scaling:
        return {"config": study.scaling.content(study)}
    if name == PAIRS:
        return {"config": {}}
    if name == CROSSOVER:
        return {"config": _crossover(study)}
    if paired := _paired_table(name):
        baseline = _table(study, paired).baseline_of(study)
        return {**_content(study, paired), "of": paired, "baseline": baseline}
    if name in DECISIONS:
        return {"config": _decision(study, name)}
    return _table(study, name).content(study)


def _decision(study: Study, name: str) -> dict[str, Any]:
    """Of what is made of tables: the published files by their content, and what a comparison has to know of each table.

    Ranks take the published tables that the study has; findings and claims concern them all.
    """
    own = study.tables.defined()
    published = [table for table in published_tables() if name != RANKS or table in own]
    config: dict[str, Any] = {"published": {table: published_digest(f"{table}.csv") for table in published}}
    if name == CLAIMS:
        config["claims"] = published_digest(CLAIMS_FILE)
    if name == COMPARISON:
        config["tables"] = {
            name: {"baseline": table.baseline_label(study), "benchmarks": table.benchmark_labels(study)}
            for name, table in own.items()
        }
    return config


def _crossover(study: Study) -> dict[str, Any]:
    """What the rows of precisions do not say: their baseline, the table's own workload, and the batches."""
    table = _table(study, _PRECISIONS)
    batches = {id: workload.batch_size for id, workload in study.inference.workloads.items()}
    return {"baseline": table.baseline_label(study), "workload": table.plain()["workload"], "batch_sizes": batches}


def _paired_table(name: str) -> str | None:
    """The table whose pairs a table has; None for any other."""
    table = name.removesuffix(pairs_of(""))
    return table if table != name else None


def _table(study: Study, name: str) -> Table:
    table = study.tables.defined().get(name)
    if table is None:
        raise UserError(f"tables.{name}: the study {study.name!r} does not define it; add it to the study.")
    return table


def _all_nodes(study: Study) -> dict[str, list[str]]:
    """The nodes of every table, and the training runs behind its models, each once."""
    nodes: dict[str, dict[str, None]] = {}
    tables = study.tables.defined().values()
    for table in tables:
        for stage, ids in table.nodes(study).items():
            nodes.setdefault(stage, {}).update(dict.fromkeys(ids))
    for table in tables:
        for model in table.models_behind(study):
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
