"""The graph of a study: for every node, its spec and its parents. Knows nothing of Snakemake.

A spec is the node's own slice of the study and the version of its stage, as one plain sorted dict. What is not in
it (labels, other rows, the machine) does not rerun the node.
"""

import glob
from itertools import takewhile
from pathlib import Path
from typing import Any

from effllm.errors import UserError
from effllm.fields import Section, sort_keys
from effllm.models.checkpoint.check import check_directory
from effllm.models.checkpoint.files import model_files
from effllm.stages import STAGES
from effllm.study.code_tasks import HumanEvalBenchmark, ProblemFiles
from effllm.study.data import FilesCorpusSource, SyntheticStream, TrainedTokenizer
from effllm.study.finetuning import run_of
from effllm.study.instructions import FilesInstructionSource
from effllm.study.measure import HeldOutBenchmark
from effllm.study.models import FinetunedSource, LocalModelSource, PretrainedSource
from effllm.study.study import Study
from effllm.study.table_graph import defined_tables, measured_nodes, table_nodes, table_spec, table_tables


class Graph:
    """Nodes of a study below a results directory."""

    def __init__(self, study: Study, results: str = "results"):
        self.study = study
        self.results = results
        self._measured = measured_nodes(study)

    def manifest(self, stage: str, id: str) -> str:
        """Path of a node's manifest."""
        return f"{self.results}/{stage}/{id}/manifest.json"

    def ids(self, stage: str) -> list[str]:
        """Ids of all nodes of a stage (`model.precision.benchmark` for evaluations)."""
        study = self.study
        variants = [f"{model}.{precision}" for model in study.models for precision in study.precisions]
        return {
            "corpus": list(study.corpora),
            "tokenizer": list(study.tokenizers),
            "tokens": list(study.tokens),
            "instructions": list(study.instructions),
            "pretrain": list(study.pretraining),
            "model": [
                id
                for id, model in study.models.items()
                if not isinstance(model.source, PretrainedSource | FinetunedSource)
            ],
            "finetune": [node for id, suite in study.finetuning.items() for node in suite.nodes(id)],
            "merge": list(
                dict.fromkeys(
                    model.source.node
                    for model in study.models.values()
                    if isinstance(model.source, FinetunedSource) and self._is_adapter(model.source)
                )
            ),
            "quantize": variants,
            "benchmark": list(study.benchmarks),
            "evaluate": [f"{variant}.{benchmark}" for variant in variants for benchmark in study.benchmarks],
            "profile": variants,
        }[stage]

    def spec(self, stage: str, id: str) -> dict[str, Any]:
        """What decides the result of a node, beside its parents."""
        config = self._config(stage, id)
        plain = config.plain() if isinstance(config, Section) else config
        return sort_keys({"stage": stage, "version": STAGES[stage].version, "config": plain})

    def parents(self, stage: str, id: str) -> dict[str, str | list[str]]:
        """Paths of a node's inputs by name: manifests of artifacts, or lists of plain files."""
        study = self.study
        if stage == "corpus":
            source = study.corpora[id].source
            is_files = isinstance(source, FilesCorpusSource)
            return {"files": expand_paths(f"corpora.{id}", source.paths)} if is_files else {}
        if stage == "instructions":
            source = study.instructions[id].source
            is_files = isinstance(source, FilesInstructionSource)
            return {"files": expand_paths(f"instructions.{id}", source.paths)} if is_files else {}
        if stage == "tokenizer":
            tokenizer = study.tokenizers[id]
            is_trained = isinstance(tokenizer, TrainedTokenizer)
            return {"corpus": self.manifest("corpus", tokenizer.corpus)} if is_trained else {}
        if stage == "tokens":
            stream = study.tokens[id]
            if isinstance(stream, SyntheticStream):
                return {}
            return {
                "corpus": self.manifest("corpus", stream.corpus),
                "tokenizer": self.manifest("tokenizer", stream.tokenizer),
            }
        if stage == "pretrain":
            tokens = study.pretraining[id].tokens
            stream = study.tokens[tokens]
            parents = {"tokens": self.manifest("tokens", tokens)}
            if isinstance(stream, SyntheticStream):
                return parents
            return parents | {"tokenizer": self.manifest("tokenizer", stream.tokenizer)}
        if stage == "model":
            source = study.models[id].source
            if not isinstance(source, LocalModelSource):
                return {}
            return {"files": [str(path) for path in model_files(Path(source.path), f"models.{id}.source.path")]}
        if stage == "finetune":
            model, suite, _ = id.rsplit(".", 2)
            return {
                "model": self.weights(model),
                "instructions": self.manifest("instructions", study.finetuning[suite].instructions),
            }
        if stage == "merge":
            model, _, _ = id.rsplit(".", 2)
            return {"model": self.weights(model), "adapter": self.manifest("finetune", id)}
        if stage == "quantize":
            return self._quantize_parents(id)
        if stage == "benchmark":
            benchmark = study.benchmarks[id]
            if isinstance(benchmark, HeldOutBenchmark):
                return {"corpus": self.manifest("corpus", benchmark.corpus)}
            if isinstance(benchmark, HumanEvalBenchmark) and isinstance(benchmark.source, ProblemFiles):
                return {"files": expand_paths(f"benchmarks.{id}", benchmark.source.paths)}
            return {}
        if stage == "evaluate":
            variant, benchmark = id.rsplit(".", 1)
            return {
                "model": self.manifest("quantize", variant),
                "benchmark": self.manifest("benchmark", benchmark),
            }
        return {"model": self.manifest("quantize", id)}

    def weights(self, model: str) -> str:
        """Manifest of the artifact that holds a model's unquantized weights."""
        source = self.study.models[model].source
        if isinstance(source, PretrainedSource):
            return self.manifest("pretrain", source.run)
        if isinstance(source, FinetunedSource):
            return self.manifest("merge" if self._is_adapter(source) else "finetune", source.node)
        return self.manifest("model", model)

    def check_files(self) -> None:
        """Raise `UserError` for a local file that is missing, and for a model directory that no stage could use."""
        for stage in ("corpus", "instructions", "model", "benchmark"):
            for id in self.ids(stage):
                self.parents(stage, id)
        for id, model in self.study.models.items():
            if isinstance(model.source, LocalModelSource):
                check_directory(Path(model.source.path), f"models.{id}.source.path")

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
        return stage == "profile" or (stage, id) in self._measured

    def _config(self, stage: str, id: str) -> Section | dict[str, Any]:
        study = self.study
        if stage == "quantize":
            model, precision = id.rsplit(".", 1)
            return {"precision": study.precision_of(model, precision).plain()}
        if stage == "evaluate":
            return {"protocol": study.evaluation.plain()}
        if stage == "model":
            return study.models[id].source
        if stage == "finetune":
            model, suite, method = id.rsplit(".", 2)
            return run_of(study.finetuning[suite], study.methods[method], model, method)
        if stage == "merge":
            return {}
        if stage == "benchmark":
            return {"benchmark": {k: v for k, v in study.benchmarks[id].plain().items() if k != "label"}}
        if stage == "tokenizer":
            return {"tokenizer": study.tokenizers[id].plain()}
        sections = {
            "corpus": study.corpora,
            "tokens": study.tokens,
            "instructions": study.instructions,
            "pretrain": study.pretraining,
        }
        return study.inference if stage == "profile" else sections[stage][id]

    def _is_adapter(self, source: FinetunedSource) -> bool:
        return not self.study.methods[source.method].trains_whole_model

    def _quantize_parents(self, id: str) -> dict[str, str | list[str]]:
        model, precision = id.rsplit(".", 1)
        weights = self.weights(model)
        calibration = self.study.precision_of(model, precision).calibration_set()
        if calibration is None:
            return {"model": weights}
        return {"model": weights, calibration.stage: self.manifest(calibration.stage, calibration.source)}


def expand_paths(where: str, patterns: list[str]) -> list[str]:
    """Files behind paths and glob patterns, sorted, each once; `UserError` for a pattern that matches nothing.

    What exists under its name is meant, brackets and all: `data[1].jsonl` is a pattern only where no such file is.
    """
    files: set[str] = set()
    for pattern in patterns:
        found = [path for path in glob.glob(_literal_where_it_exists(pattern), recursive=True) if Path(path).is_file()]
        if not found and _exists(pattern):
            raise UserError(f"{where}.source.paths: {pattern!r} is a directory; name its files, as {pattern}/*.jsonl.")
        if not found:
            raise UserError(f"{where}.source.paths: {pattern!r} matches no file; correct the path or add the file.")
        files.update(found)
    return sorted(files)


def _literal_where_it_exists(pattern: str) -> str:
    """The pattern with the special characters of its leading parts escaped, as far as they name what exists."""
    parts = pattern.split("/")
    beginnings = ("/".join(parts[:end]) or "/" for end in range(1, len(parts) + 1))
    known = sum(1 for _ in takewhile(_exists, beginnings))
    return "/".join([*map(glob.escape, parts[:known]), *parts[known:]])


def _exists(path: str) -> bool:
    # Unlike Path.exists it says no to a name that no file system can hold.
    return bool(glob.glob(glob.escape(path)))
