"""The graph of a study: for every node, its spec and its parents. Knows nothing of Snakemake.

A spec is the node's own slice of the study and the version of its stage, as one plain sorted dict. What is not in
it (labels, other rows, the machine) does not rerun the node.
"""

from typing import Any

from effllm.fields import Section, sort_keys
from effllm.stages import STAGES
from effllm.study import Study
from effllm.study.models import FinetunedSource, PretrainedSource
from effllm.study.table_graph import defined_tables, nodes_in_tables, table_nodes, table_spec, table_tables


class Graph:
    """Nodes of a study below a results directory."""

    def __init__(self, study: Study, results: str = "results"):
        self.study = study
        self.results = results
        self._in_tables = nodes_in_tables(study)

    def manifest(self, stage: str, id: str) -> str:
        """Path of a node's manifest."""
        return f"{self.results}/{stage}/{id}/manifest.json"

    def ids(self, stage: str) -> list[str]:
        """Ids of all nodes of a stage (`model.precision.benchmark` for evaluations)."""
        return STAGES[stage].ids(self.study)

    def spec(self, stage: str, id: str) -> dict[str, Any]:
        """What decides the result of a node, beside its parents."""
        config = STAGES[stage].config(self.study, id)
        plain = config.plain() if isinstance(config, Section) else config
        return sort_keys({"stage": stage, "version": STAGES[stage].version, "config": plain})

    def parents(self, stage: str, id: str) -> dict[str, str | list[str]]:
        """Paths of a node's inputs by name: manifests of artifacts, or lists of plain files."""
        return dict(STAGES[stage].parents(self, id))

    def weights(self, model: str) -> str:
        """Manifest of the artifact that holds a model's unquantized weights."""
        source = self.study.models[model].source
        if isinstance(source, PretrainedSource):
            return self.manifest("pretrain", source.run)
        if isinstance(source, FinetunedSource):
            return self.manifest("merge" if self.study.makes_adapter(source) else "finetune", source.node)
        return self.manifest("model", model)

    def check_files(self) -> None:
        """Raise `UserError` for a local file that is missing, and for a model directory that no stage could use."""
        for name, stage in STAGES.items():
            for id in self.ids(name):
                stage.check_files(self, id)

    def table_spec(self, name: str) -> dict[str, Any]:
        """What decides a table, beside the artifacts it reads: its rows, columns and labels."""
        return table_spec(self.study, name)

    def table_parents(self, name: str) -> dict[str, list[str]]:
        """What a table reads: manifests by stage, or the other tables that it is made of."""
        nodes = table_nodes(self.study, name)
        found = {stage: [self.manifest(stage, id) for id in ids] for stage, ids in nodes.items()}
        tables = table_tables(self.study, name)
        return found | {key: [f"{self.results}/{table}.csv" for table in names] for key, names in tables.items()}

    def tables(self) -> list[str]:
        """Names of the tables that the study defines."""
        return defined_tables(self.study)

    def budgets(self) -> dict[str, dict[str, Any]]:
        """The limits of recommendations by table, which decide no result."""
        return {name: budget.plain() for name, budget in sorted(self.study.budgets.items())}

    def is_measured(self, stage: str, id: str) -> bool:
        """Whether the node's own figures stand in a table, so that nothing may run beside it."""
        return STAGES[stage].is_measured((stage, id) in self._in_tables)
