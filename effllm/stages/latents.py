"""Stage `latents`: images encoded by an autoencoder."""

from typing import TYPE_CHECKING, Any, ClassVar

from effllm.data.latents.settings import LatentsProtocol
from effllm.stages.cost import Cost, NodeContext
from effllm.stages.request import PROCESS_MB, JobContext, Request, rounded
from effllm.stages.stage import Parents, Stage
from effllm.stages.training import SUSTAINED_FLOPS
from effllm.study import Study

if TYPE_CHECKING:
    from effllm.stages.graph import Graph

# Of Stable Diffusion's autoencoder, the largest in common use: 0.273 and 0.622 TFLOP for an image of 256 x 256 pixels
# by torch's counter; pixels to a latent's side, channels of images and latents.
ENCODER_FLOPS_PER_PIXEL = 4.2e6
DECODER_FLOPS_PER_PIXEL = 9.5e6
DOWNSCALE, COLOURS, CHANNELS = 8, 3, 4
# What a batch's activations and the weights take on the host where there is no GPU, in MB.
_ENCODER_MB = 8_000


class LatentsStage(Stage):
    """Nodes are the study's latents."""

    name: ClassVar[str] = "latents"
    module: ClassVar[str] = "effllm.data.latents.encode"
    version: ClassVar[int] = 1
    uses_device: ClassVar[bool] = True

    def ids(self, study: Study) -> list[str]:
        return list(study.latents)

    def config(self, study: Study, id: str) -> dict[str, Any]:
        return study.latents[id].protocol()

    def parents(self, graph: "Graph", id: str) -> Parents:
        latents = graph.study.latents[id]
        return {
            "images": graph.manifest("images", latents.images),
            "autoencoder": graph.manifest("autoencoder", latents.autoencoder),
        }

    def request(self, job: JobContext) -> Request:
        from effllm.results.data import ImagesSummary

        images = ImagesSummary.read(job.artifact("images").directory)
        pixels = sum(images.splits.values()) * images.size**2 * (1 + job.study.latents[job.id].mirrored)
        minutes = 60 + pixels * ENCODER_FLOPS_PER_PIXEL / SUSTAINED_FLOPS["float32"] / 60
        return rounded(minutes, PROCESS_MB + _ENCODER_MB, gpus=1)

    def cost(self, node: NodeContext) -> Cost:
        protocol = LatentsProtocol.model_validate(dict(node.config))
        kind = f"latents by {node.id_of('autoencoder')}, {'two views' if protocol.mirrored else 'one view'}"
        why = dict.fromkeys(("memory_b", "scratch_b"), "the autoencoder and the number of images decide")
        return Cost(1, kind, reasons=why)
