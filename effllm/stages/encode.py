"""Stage `encode`: samples with captions, encoded by a pipeline."""

from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar

from effllm.errors import UserError
from effllm.models.generators.shapes import shape_of_source
from effllm.stages.cost import Cost, NodeContext
from effllm.stages.request import PROCESS_MB, JobContext, Request, rounded
from effllm.stages.stage import Parents, Stage
from effllm.study import Study

if TYPE_CHECKING:
    from effllm.stages.graph import Graph

# What text encoders and an autoencoder take on the host while they are read, T5's eleven billion bytes among them.
_ENCODERS_MB = 32_000
# A sample's encoding, at a second each, which is generous for images and not for long clips.
_SAMPLES_PER_MINUTE = 60


class EncodeStage(Stage):
    """Nodes are `generator.captions`, of every pipeline that a suite fine-tunes on these captions."""

    name: ClassVar[str] = "encode"
    module: ClassVar[str] = "effllm.data.encodings.encode"
    version: ClassVar[int] = 1
    uses_device: ClassVar[bool] = True

    def ids(self, study: Study) -> list[str]:
        pairs = (f"{model}.{suite.captions}" for suite in study.tuning.values() for model in suite.models)
        return list(dict.fromkeys(pairs))

    def config(self, study: Study, id: str) -> dict[str, Any]:
        return {"text_tokens": study.generators[id.rpartition(".")[0]].text_tokens}

    def parents(self, graph: "Graph", id: str) -> Parents:
        generator, _, captions = id.rpartition(".")
        return {"generator": graph.manifest("generator", generator), "captions": graph.manifest("captions", captions)}

    def request(self, job: JobContext) -> Request:
        from effllm.results.data import CaptionsSummary

        samples = sum(CaptionsSummary.read(job.artifact("captions").directory).splits.values())
        return rounded(60 + samples / _SAMPLES_PER_MINUTE, PROCESS_MB + _ENCODERS_MB, gpus=1)

    def cost(self, node: NodeContext) -> Cost:
        kind = f"encodings of {node.id_of('captions')} by {node.id_of('generator')}"
        why = dict.fromkeys(("memory_b", "disk_b", "scratch_b"), "the pipeline and the number of samples decide")
        generator, least_b = node.config_of("generator"), None
        if generator is not None:
            with suppress(UserError, ValueError):
                parameters = shape_of_source(generator).text_parameters
                # In bfloat16, all of them at once.
                least_b = None if parameters is None else 2.0 * parameters
        return Cost(1, kind, memory_least_b=least_b, reasons=why)
