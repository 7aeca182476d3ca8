"""Stage `tune`: one method on one pipeline of a suite, for images and videos."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from effllm.stages.cost import Cost, NodeContext
from effllm.stages.history import MeasuredWork
from effllm.stages.request import JobContext, Request
from effllm.stages.stage import Parents, Stage
from effllm.stages.training import training_request, training_work
from effllm.study import Study
from effllm.training.suites import settings_of_run
from effllm.training.tuning_settings import TuningRun

if TYPE_CHECKING:
    from effllm.runtime.artifact import Artifact
    from effllm.stages.graph import Graph

# Patches of a sample that a job is sized by: an image of 1,024 pixels has 4,096, short clips have several times that.
_PATCHES = 16_384


class TuneStage(Stage):
    """Nodes are `generator.suite.method`. An artifact is an adapter, or a transformer."""

    name: ClassVar[str] = "tune"
    module: ClassVar[str] = "effllm.training.tune"
    version: ClassVar[int] = 1
    uses_device: ClassVar[bool] = True

    def ids(self, study: Study) -> list[str]:
        return [node for id, suite in study.tuning.items() for node in suite.nodes(id)]

    def config(self, study: Study, id: str) -> TuningRun:
        model, suite, method = id.rsplit(".", 2)
        return settings_of_run(TuningRun, study.tuning[suite], study.methods[method], model, method)

    def parents(self, graph: "Graph", id: str) -> Parents:
        model, suite, _ = id.rsplit(".", 2)
        captions = graph.study.tuning[suite].captions
        return {
            "generator": graph.manifest("generator", model),
            "encodings": graph.manifest("encode", f"{model}.{captions}"),
        }

    def is_measured(self, is_in_table: bool) -> bool:
        return is_in_table

    def devices(self, config: Mapping[str, Any]) -> int:
        return int(config["parallel"]["devices"])

    def request(self, job: JobContext) -> Request:
        from effllm.results.data import EncodingsSummary
        from effllm.results.model import GeneratorSummary

        parameters = GeneratorSummary.read(job.artifact("generator").directory).parameters["transformer"]
        run = self.config(job.study, job.id)
        encodings = job.artifact("encodings")
        # A failed cell is not trained on.
        is_there = encodings.manifest.status == "ok"
        samples = EncodingsSummary.read(encodings.directory).splits["train"] if is_there else 0
        # A backward pass through all weights.
        flops = 6 * parameters * run.steps(samples) * run.samples_per_step * _PATCHES
        return training_request(run.parallel, run.dtype, parameters, flops)

    def cost(self, node: NodeContext) -> Cost:
        run = TuningRun.model_validate(dict(node.config))
        amount = f"{run.max_steps} steps of {run.samples_per_step}" if run.max_steps else f"{run.epochs} epochs"
        kind = f"{node.config['method']['kind']} in {run.dtype}, {amount} of {node.id_of('encodings')}"
        why = dict.fromkeys(("memory_b", "disk_b", "scratch_b"), "the pipeline and the shapes of samples decide")
        return Cost(run.parallel.world_size, kind, reasons=why)

    def measured_work(self, artifact: "Artifact") -> MeasuredWork:
        return training_work(artifact)
