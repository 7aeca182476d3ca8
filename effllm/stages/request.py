"""The terms in which a stage says what its jobs ask of a cluster.

These are requests, not predictions: a job that gets too little is ended, so they are generous, and each attempt asks
for more.
"""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from effllm.study import Study

if TYPE_CHECKING:
    from effllm.models.placement import Need
    from effllm.runtime.artifact import Artifact
    from effllm.stages.weights import Weights

MB, GB = 1e6, 1e9
# A process with PyTorch and the libraries beside it, in MB, with a margin.
PROCESS_MB = 8_000
# A neighbour's load would be in the figures.
WHOLE_NODES = "--exclusive"


@dataclass(frozen=True)
class Request:
    """Minutes, host memory in MB per node, nodes, GPUs per node, and what else Slurm is told."""

    minutes: int
    memory_mb: int
    nodes: int = 1
    gpus_per_node: int = 0
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class JobContext:
    """What a job is sized by.

    cores: CPU cores that it gets. inputs: names of its inputs.
    artifact: the parent behind an input name; FileNotFoundError, which names its manifest, if it is not built yet, and
    `UserError` if it is damaged. weights: those of the parent behind the input `model`, likewise. gpu_memory_b: of one
    GPU of the machines that jobs run on; None where nobody said.
    """

    study: Study
    id: str
    cores: int
    inputs: Collection[str]
    artifact: "Callable[[str], Artifact]"
    weights: "Callable[[], Weights]"
    gpu_memory_b: float | None = None

    def gpus(self, asked: int | None, need: "Callable[[], Need]") -> int:
        """How many GPUs of a host a model gets: those that the study asks for, or as many as its bytes need.

        One where neither that nor the memory of the GPUs is known.
        """
        if asked is not None or self.gpu_memory_b is None:
            return asked or 1
        # Where no number of them holds it, the stage says so on one.
        return need().gpus(self.gpu_memory_b) or 1


def rounded(
    minutes: float, memory_mb: float, *, nodes: int = 1, gpus: int = 0, options: tuple[str, ...] = ()
) -> Request:
    """A request in steps of ten minutes and of a GB."""
    return Request(10 * math.ceil(int(minutes) / 10), 1000 * math.ceil(int(memory_mb) / 1000), nodes, gpus, options)
