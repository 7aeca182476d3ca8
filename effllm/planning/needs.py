"""What the nodes of a study need from the hub: repositories at their commits, and the files of each."""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from effllm.errors import UserError
from effllm.hub.repository import HubFile, Repository
from effllm.planning.nodes import Node
from effllm.study import Graph
from effllm.study.data import HubCorpusSource, HubTokenizer
from effllm.study.instructions import HubInstructionSource
from effllm.study.measure import HarnessBenchmark
from effllm.study.models import HubModelSource


@dataclass(frozen=True)
class Need:
    """Files of a repository that a node is built from; `node` is its name."""

    node: str
    repository: Repository
    files: list[HubFile]

    @property
    def size_b(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


def uses_hub(graph: Graph, node: Node) -> bool:
    """Whether a node is built from files of the hub."""
    return node.stage in _NEEDS and _NEEDS[node.stage].configured(graph, node.id) is not None


def needs_of(graph: Graph, node: Node) -> list[Need]:
    """What a node that uses the hub is built from: asks the hub for lists of files and for small files.

    `UserError` for what the hub does not give, and for what the stage itself would refuse by these.
    """
    config = _NEEDS[node.stage].configured(graph, node.id)
    with tempfile.TemporaryDirectory() as folder:
        return [Need(node.name, *found) for found in _NEEDS[node.stage].find(config, Path(folder), node.id)]


_Found = Iterator[tuple[Repository, list[HubFile]]]


def _model(source: HubModelSource, folder: Path, id: str) -> _Found:
    from effllm.models.import_model import needed_files

    repository = Repository("model", source.repo, source.revision)
    yield repository, needed_files(repository, folder, f"models.{id}")


def _tokenizer(source: HubTokenizer, folder: Path, id: str) -> _Found:
    from effllm.data.tokenizer import tokenizer_files

    repository = Repository("model", source.repo, source.revision)
    yield repository, tokenizer_files(repository)


def _dataset(source: HubCorpusSource | HubInstructionSource, folder: Path, id: str) -> _Found:
    from effllm.hub.dataset import HubDataset

    dataset = HubDataset(source.repo, source.name, source.revision, folder)
    yield dataset.repository, dataset.files([source.split])


def _benchmark(source: HarnessBenchmark, folder: Path, id: str) -> _Found:
    from effllm.evaluation.harness_data import dataset_of, resolve

    for number, leaf in enumerate(resolve(source.task).leaves):
        dataset = dataset_of(leaf, source.revision, folder / str(number))
        try:
            yield dataset.repository, dataset.files(leaf.splits())
        except UserError as error:
            raise UserError(f"benchmark.task: {leaf.name!r}: {error}") from None


@dataclass(frozen=True)
class _StageNeeds:
    """`configured`: a node's section of the study, None where it needs no hub; `find`: what that section needs."""

    configured: Callable[[Graph, str], Any]
    find: Callable[[Any, Path, str], _Found]


def _if(kind: type, found: object) -> Any:
    return found if isinstance(found, kind) else None


_NEEDS = {
    "corpus": _StageNeeds(lambda graph, id: _if(HubCorpusSource, graph.study.corpora[id].source), _dataset),
    "tokenizer": _StageNeeds(lambda graph, id: _if(HubTokenizer, graph.study.tokenizers[id]), _tokenizer),
    "instructions": _StageNeeds(
        lambda graph, id: _if(HubInstructionSource, graph.study.instructions[id].source), _dataset
    ),
    "model": _StageNeeds(lambda graph, id: _if(HubModelSource, graph.study.models[id].source), _model),
    "benchmark": _StageNeeds(lambda graph, id: _if(HarnessBenchmark, graph.study.benchmarks[id]), _benchmark),
}
"""By stage: every one that may use the network."""
