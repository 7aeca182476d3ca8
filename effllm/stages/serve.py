"""Stage `serve`: a model in one precision under load."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from effllm.errors import UserError
from effllm.models.costs import cache_bytes, forward_flops
from effllm.serving.settings import ServeConfig, Serving, serving_need
from effllm.stages.cost import Cost, NodeContext, number_type, with_model
from effllm.stages.history import MeasuredWork, readable
from effllm.stages.request import MB, PROCESS_MB, WHOLE_NODES, JobContext, Request, rounded
from effllm.stages.stage import Parents, Stage
from effllm.stages.weights import asked_devices, model_directory, parents_precision_b
from effllm.study import Study

if TYPE_CHECKING:
    from effllm.models.costs.shapes import Shape
    from effllm.runtime.artifact import Artifact
    from effllm.stages.graph import Graph

# Rates take longer the lower they are, and none is known before it is measured.
_MINUTES_OF_RATE = 15


class ServeStage(Stage):
    """Nodes are `model.precision.serving`."""

    name: ClassVar[str] = "serve"
    module: ClassVar[str] = "effllm.serving.serve"
    version: ClassVar[int] = 1
    uses_device: ClassVar[bool] = True

    def ids(self, study: Study) -> list[str]:
        variants = [f"{model}.{precision}" for model in study.models for precision in study.precisions]
        return [f"{variant}.{id}" for variant in variants for id in study.serving]

    def config(self, study: Study, id: str) -> dict[str, Any]:
        model, _, name = id.rsplit(".", 2)
        return study.serving[name].plain() | asked_devices(study, model)

    def parents(self, graph: "Graph", id: str) -> Parents:
        variant, _, name = id.rpartition(".")
        parents: dict[str, str | list[str]] = {"model": graph.manifest("quantize", variant)}
        trace = graph.study.serving[name].load.trace
        if trace is None:
            return parents
        if not Path(trace.path).is_file():
            raise UserError(f"serving.{name}.load.trace.path: {trace.path!r} is no file; correct the path.")
        return parents | {"trace": [trace.path]}

    def is_measured(self, is_in_table: bool) -> bool:
        return True

    def request(self, job: JobContext) -> Request:
        weights = job.weights()
        serving = job.study.serving[job.id.rpartition(".")[2]]
        minutes = 30 + _MINUTES_OF_RATE * len(serving.load_ids()) + weights.gb_16_bit
        asked = job.study.models[job.id.rsplit(".", 2)[0]].devices
        gpus = job.gpus(asked, lambda: serving_need(weights.bytes, model_directory(job), serving))
        return rounded(minutes, PROCESS_MB + 2 * weights.bytes / MB, gpus=gpus, options=(WHOLE_NODES,))

    def devices(self, config: Mapping[str, Any]) -> int:
        return config.get("devices") or 1

    def cost(self, node: NodeContext) -> Cost:
        config = ServeConfig.model_validate(dict(node.config))
        base = Cost(
            config.devices or 1,
            f"serving {config.plain()}",
            spreads="as asked" if config.devices else "as needed",
        )
        return with_model(base, node, lambda shape: _cost_of_model(config, node, shape))

    def measured_work(self, artifact: "Artifact") -> MeasuredWork:
        from effllm.results.serving import Serving as Result

        served = readable(Result, artifact.directory)
        if served is None:
            return MeasuredWork()
        return MeasuredWork(max((load.telemetry for load in served.loads.values()), key=lambda found: found.duration_s))


def _cost_of_model(serving: Serving, node: NodeContext, shape: "Shape") -> Mapping[str, Any]:
    reasons = {
        "disk_b": "the size of the records is known once a model was served",
        "scratch_b": "as much as it publishes, and the engine's own files are not counted",
    }
    known = {"work": float(forward_flops(shape, 1))}
    cache_b, cached = serving.engine.cache_b(), serving.engine.cached_tokens()
    if cached is not None:
        cache_b = cache_bytes(shape, cached, number_type("bfloat16"))
    if cache_b is None:
        return known | {"reasons": reasons | {"memory_b": "the engine takes what memory it finds"}}
    return known | {"memory_b": parents_precision_b(node, shape) + cache_b, "reasons": reasons}
