"""What the nodes of a study need of the network: files of the hub's repositories at their commits, and of addresses."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from effllm.hub.address import Address
from effllm.hub.repository import HubFile, Repository
from effllm.planning.nodes import Node
from effllm.stages import STAGES
from effllm.stages.graph import Graph


@dataclass(frozen=True)
class Need:
    """Files of a repository that a node is built from; `node` is its name.

    is_limit: a limit of the study may leave some of them out, which shows once the others were read.
    """

    node: str
    repository: Repository
    files: list[HubFile]
    is_limit: bool = False

    @property
    def size_b(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


def uses_network(graph: Graph, node: Node) -> bool:
    """Whether a node is built from files of the hub or of an address."""
    if node.stage not in STAGES:
        return False
    stage = STAGES[node.stage]
    return stage.hub_source(graph.study, node.id) is not None or address_of(graph, node) is not None


def address_of(graph: Graph, node: Node) -> Address | None:
    """The file that a node takes from an address."""
    return STAGES[node.stage].address(graph.study, node.id)


def needs_of(graph: Graph, node: Node) -> list[Need]:
    """What a node takes from the hub: asks the hub for lists of files and for small files.

    `UserError` for what the hub does not give, and for what the stage itself would refuse by these.
    """
    stage = STAGES[node.stage]
    source = stage.hub_source(graph.study, node.id)
    if source is None:
        return []
    with tempfile.TemporaryDirectory() as folder:
        is_limit = stage.is_limited(graph.study, node.id)
        return [Need(node.name, *found, is_limit) for found in stage.hub_files(source, node.id, Path(folder))]
