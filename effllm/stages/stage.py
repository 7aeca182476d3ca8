"""What a stage says of itself. Nothing heavy is imported here, because every parse of the workflow reads it."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from effllm.fields import Section
from effllm.stages.cost import Cost, NodeContext
from effllm.stages.history import MeasuredWork
from effllm.stages.request import JobContext, Request
from effllm.study import Study

if TYPE_CHECKING:
    from effllm.hub.address import Address
    from effllm.hub.repository import HubFile, Repository
    from effllm.runtime.artifact import Artifact
    from effllm.stages.graph import Graph

Parents = Mapping[str, str | list[str]]
"""A node's inputs by name: the manifest of an artifact, or a list of plain files."""


class Stage(ABC):
    """One stage: which program builds its artifacts, what decides them, and what they cost.

    name: also that of its rule and of its folder below the results.
    module: the program, which has `build(job)`; run as `python -m <module>`.
    version: part of every spec of the stage. Raise it by hand when a change to the code alters results: everything
    that an older version built then reruns.
    network: whether it may need the hub. Such stages run on the submitting host.
    uses_device: whether its jobs hold accelerators.
    makes_model: whether its artifacts are models, with `model/` and `parameters`.
    kept_to: settings that a run keeps to from its first checkpoint on; another change of the study begins it anew.
    """

    name: ClassVar[str]
    module: ClassVar[str]
    version: ClassVar[int]
    network: ClassVar[bool] = False
    uses_device: ClassVar[bool] = False
    makes_model: ClassVar[bool] = False
    kept_to: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def ids(self, study: Study) -> list[str]:
        """Ids of the stage's nodes."""

    @abstractmethod
    def config(self, study: Study, id: str) -> Section | dict[str, Any]:
        """The node's own slice of the study: what decides its result, beside its parents."""

    def parents(self, graph: "Graph", id: str) -> Parents:
        """The node's inputs; `UserError` for a local file that is missing."""
        return {}

    def check_files(self, graph: "Graph", id: str) -> None:
        """Raise `UserError` for local files that are missing or that the program would refuse."""
        self.parents(graph, id)

    def is_measured(self, is_in_table: bool) -> bool:
        """Whether its own time, memory and power are results, so that nothing may run on the machine meanwhile.

        `is_in_table`: whether a table of the study reads the node.
        """
        return False

    def devices(self, config: Mapping[str, Any]) -> int:
        """Accelerators that a job holds on one machine; `config` is the node's slice of the study."""
        return int(self.uses_device)

    def request(self, job: JobContext) -> Request:
        """What a job asks of a cluster at its first attempt."""
        raise NotImplementedError(f"{self.name} runs on the submitting host and asks a cluster for nothing")

    def cost(self, node: NodeContext) -> Cost:
        """What a node costs in terms that no device decides.

        What is not known of its model is None with its reason. A stage that says nothing more than this is planned from
        earlier builds of the same node.
        """
        return Cost(devices=0, kind=node.id, reasons={"disk_b": f"{self.name}: known once it is built"})

    def measured_work(self, artifact: "Artifact") -> MeasuredWork:
        """What an artifact's records say of the time and power that it took, for plans of others."""
        return MeasuredWork()

    def parameters(self, artifact: "Artifact") -> float:
        """Parameters of the model that an artifact is; ValueError, KeyError or TypeError if its spec is none."""
        raise ValueError(f"{self.name} makes no model")

    def hub_source(self, study: Study, id: str) -> Any:
        """The section of the study that names what the node takes from the hub; None if it takes nothing."""
        return None

    def hub_files(self, source: Any, id: str, folder: Path) -> "Iterator[tuple[Repository, list[HubFile]]]":
        """What `hub_source` names: repositories, and the files of each. Asks the hub; `folder` is for small files."""
        return iter(())

    def address(self, study: Study, id: str) -> "Address | None":
        """A file that the node takes from an address, neither from the hub nor from this machine."""
        return None

    def fetch_limited(self, study: Study, id: str, folder: Path) -> "tuple[Repository, list[HubFile]] | None":
        """Fetch, of what `hub_files` names, the files that a limit of the study leaves, into the hub's cache.

        Returns them with their repository; None where nothing limits them. `folder` is for what is found of them.
        """
        return None

    def is_limited(self, study: Study, id: str) -> bool:
        """Whether `fetch_limited` may take less than `hub_files` names."""
        return False
