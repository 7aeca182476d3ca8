"""Stage `sample`: images sampled from a trained model of diffusion, and what that costs."""

from typing import TYPE_CHECKING, Any, ClassVar

from effllm.fidelity.settings import SamplingProtocol
from effllm.models.dit.costs import forward_flops, parameter_count
from effllm.stages.cost import Cost, NodeContext
from effllm.stages.history import MeasuredWork, readable
from effllm.stages.latents import COLOURS, DECODER_FLOPS_PER_PIXEL, DOWNSCALE
from effllm.stages.request import MB, PROCESS_MB, WHOLE_NODES, JobContext, Request, rounded
from effllm.stages.stage import Parents, Stage
from effllm.stages.training import SUSTAINED_FLOPS
from effllm.study import Study
from effllm.training.diffusion_settings import DiffusionRun

if TYPE_CHECKING:
    from effllm.runtime.artifact import Artifact
    from effllm.stages.graph import Graph

_STORED_B_PER_PARAMETER = 4


class SampleStage(Stage):
    """Nodes are `run.sampling`."""

    name: ClassVar[str] = "sample"
    module: ClassVar[str] = "effllm.fidelity.draw"
    version: ClassVar[int] = 1
    uses_device: ClassVar[bool] = True

    def ids(self, study: Study) -> list[str]:
        return [f"{run}.{id}" for id, sampling in study.sampling.items() for run in sampling.runs]

    def config(self, study: Study, id: str) -> dict[str, Any]:
        return study.sampling[id.rpartition(".")[2]].protocol()

    def parents(self, graph: "Graph", id: str) -> Parents:
        run = id.rpartition(".")[0]
        parents = {"run": graph.manifest("diffuse", run)}
        latents = graph.study.latents.get(graph.study.diffusion[run].images)
        if latents is None:
            return parents
        return parents | {"autoencoder": graph.manifest("autoencoder", latents.autoencoder)}

    def is_measured(self, is_in_table: bool) -> bool:
        return True

    def request(self, job: JobContext) -> Request:
        run_id, _, id = job.id.rpartition(".")
        run, protocol = job.study.diffusion[run_id], job.study.sampling[id]
        parameters = parameter_count(run.architecture.shape()).total
        # The weights twice while they are read, and the images of a seed.
        images = job.study.images[job.study.images_behind(run_id)]
        drawn_b = protocol.images * images.channels * images.size**2
        memory_mb = PROCESS_MB + (2 * _STORED_B_PER_PARAMETER * parameters + drawn_b) / MB
        minutes = 30 + protocol.idle_s / 60 + _flops(run, protocol) / SUSTAINED_FLOPS[protocol.dtype] / 60
        if run.images in job.study.latents:
            decoded = protocol.images * len(protocol.seeds) * images.size**2
            minutes += decoded * DECODER_FLOPS_PER_PIXEL / SUSTAINED_FLOPS["float32"] / 60
        return rounded(minutes, memory_mb, gpus=1, options=(WHOLE_NODES,))

    def cost(self, node: NodeContext) -> Cost:
        protocol = SamplingProtocol.model_validate(dict(node.config))
        sampler = protocol.sampler
        kind = f"{protocol.dtype} {sampler.kind} in {sampler.steps} steps at guidance {sampler.guidance:g}"
        parent = node.config_of("run")
        if parent is None:
            why = "the run that its model had is not known any more"
            return Cost(1, kind, reasons=dict.fromkeys(("work", "memory_b", "disk_b", "scratch_b"), why))
        run = DiffusionRun.model_validate(dict(parent))
        flops = float(_flops(run, protocol))
        pixels_b = run.architecture.channels * run.architecture.image_size**2
        if node.config_of("autoencoder") is not None:
            kind += ", decoded"
            pixels_b = COLOURS * (DOWNSCALE * run.architecture.image_size) ** 2
        stored_b = float(len(protocol.seeds) * protocol.images * pixels_b)
        return Cost(
            1,
            kind,
            work=flops,
            flops=flops,
            protocol_s=protocol.idle_s,
            memory_least_b=float(_STORED_B_PER_PARAMETER * parameter_count(run.architecture.shape()).total),
            disk_b=stored_b,
            scratch_b=stored_b,
            reasons={"memory_b": "what a forward pass needs beside the weights is not counted"},
        )

    def measured_work(self, artifact: "Artifact") -> MeasuredWork:
        from effllm.results.fidelity import SamplingCost

        cost = readable(SamplingCost, artifact.directory)
        if cost is None or cost.seconds_per_image is None:
            return MeasuredWork()
        images = cost.images + cost.images_resumed
        return MeasuredWork(cost.telemetry, cost.seconds_per_image * images, share=cost.images / images)


def _flops(run: DiffusionRun, protocol: SamplingProtocol) -> int:
    images = protocol.images * len(protocol.seeds)
    return images * protocol.sampler.evaluations * forward_flops(run.architecture.shape())
