"""Stage `fidelity`: how close sampled images come to real ones."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from effllm.fidelity.settings import FidelityProtocol
from effllm.stages.cost import Cost, NodeContext
from effllm.stages.request import MB, PROCESS_MB, JobContext, Request, rounded
from effllm.stages.stage import Parents, Stage
from effllm.study import Study

if TYPE_CHECKING:
    from effllm.stages.graph import Graph

# Of Inception, and of a number of its features.
_INCEPTION_WIDTH, _FEATURE_B = 2048, 8
_COPIES = 3


class FidelityStage(Stage):
    """Nodes are `run.fidelity`."""

    name: ClassVar[str] = "fidelity"
    module: ClassVar[str] = "effllm.fidelity.compare"
    version: ClassVar[int] = 1
    uses_device: ClassVar[bool] = True

    def ids(self, study: Study) -> list[str]:
        return [
            f"{run}.{id}" for id, fidelity in study.fidelity.items() for run in study.sampling[fidelity.sampling].runs
        ]

    def config(self, study: Study, id: str) -> dict[str, Any]:
        return study.fidelity[id.rpartition(".")[2]].protocol()

    def parents(self, graph: "Graph", id: str) -> Parents:
        run, _, name = id.rpartition(".")
        fidelity = graph.study.fidelity[name]
        return {
            "sample": graph.manifest("sample", f"{run}.{fidelity.sampling}"),
            "images": graph.manifest("images", graph.study.images_behind(run)),
            "features": graph.manifest("features", fidelity.features),
        }

    def request(self, job: JobContext) -> Request:
        from effllm.results.data import ImagesSummary

        fidelity = job.study.fidelity[job.id.rpartition(".")[2]]
        sampling, network = job.study.sampling[fidelity.sampling], job.study.features[fidelity.features]
        width = feature_width(network.plain())
        real = ImagesSummary.read(job.artifact("images").directory).splits[fidelity.reference]
        images = sampling.images + min(real, fidelity.reference_images or real)
        memory_mb = PROCESS_MB + _COPIES * _FEATURE_B * width * images / MB
        return rounded(60 + 10 * len(sampling.seeds), memory_mb, gpus=1)

    def cost(self, node: NodeContext) -> Cost:
        protocol = FidelityProtocol.model_validate(dict(node.config))
        why = dict.fromkeys(("memory_b", "scratch_b"), "grows with images and features, and is not counted")
        kind = f"features by {node.id_of('features')}, against {protocol.reference}"
        return Cost(1, kind, disk_b=4096.0, reasons=why)


def feature_width(network: Mapping[str, Any]) -> int:
    """Features of a network, which is a slice of the study."""
    return int(network["width"]) if network["kind"] == "trained" else _INCEPTION_WIDTH
