"""Stage `profile`: the fixed inference workloads on a model in one precision."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from effllm.models.costs import cache_bytes
from effllm.stages.cost import Cost, NodeContext, number_type, with_model
from effllm.stages.history import MeasuredWork, readable
from effllm.stages.request import MB, PROCESS_MB, WHOLE_NODES, JobContext, Request, rounded
from effllm.stages.stage import Parents, Stage
from effllm.stages.weights import parents_precision_b
from effllm.study import Study
from effllm.study.evaluation import InferenceProtocol

if TYPE_CHECKING:
    from effllm.models.costs.shapes import Shape
    from effllm.runtime.artifact import Artifact
    from effllm.stages.graph import Graph


class ProfileStage(Stage):
    """Nodes are `model.precision`."""

    name: ClassVar[str] = "profile"
    module: ClassVar[str] = "effllm.profiling.inference"
    version: ClassVar[int] = 3
    uses_device: ClassVar[bool] = True

    def ids(self, study: Study) -> list[str]:
        return [f"{model}.{precision}" for model in study.models for precision in study.precisions]

    def config(self, study: Study, id: str) -> InferenceProtocol:
        return study.inference

    def parents(self, graph: "Graph", id: str) -> Parents:
        return {"model": graph.manifest("quantize", id)}

    def is_measured(self, is_in_table: bool) -> bool:
        return True

    def request(self, job: JobContext) -> Request:
        weights = job.weights()
        minutes = 30 + 3 * _protocol_s(job.study.inference) / 60 + weights.gb_16_bit
        return rounded(minutes, PROCESS_MB + 2 * weights.bytes / MB, gpus=1, options=(WHOLE_NODES,))

    def cost(self, node: NodeContext) -> Cost:
        protocol = InferenceProtocol.model_validate(dict(node.config))
        base = Cost(1, f"protocol {protocol.plain()}", protocol_s=_protocol_s(protocol))
        return with_model(base, node, lambda shape: _cost_of_model(protocol, node, shape))

    def measured_work(self, artifact: "Artifact") -> MeasuredWork:
        from effllm.results.profile import Profile

        profile = readable(Profile, artifact.directory)
        if profile is None:
            return MeasuredWork()
        measured = [workload.telemetry for workload in profile.workloads.values() if workload.telemetry]
        phases = [phase for phases in measured for phase in (phases.generate, phases.prefill)]
        return MeasuredWork(max(phases, key=lambda phase: phase.duration_s))


def _protocol_s(protocol: InferenceProtocol) -> float:
    """Seconds of the windows and rests that the protocol prescribes."""
    windows = 2 * len(protocol.workloads) * protocol.repeats
    return protocol.idle_s + windows * (protocol.minimum_window_s + protocol.cooldown_s)


def _cost_of_model(protocol: InferenceProtocol, node: NodeContext, shape: "Shape") -> Mapping[str, Any]:
    caches_b = [
        workload.batch_size * cache_bytes(shape, workload.prompt_tokens + workload.new_tokens, number_type("bfloat16"))
        for workload in protocol.workloads.values()
    ]
    missing = {"disk_b": "the size of the samples is known once a model was profiled", "scratch_b": "not measured"}
    return {"memory_b": parents_precision_b(node, shape) + max(caches_b), "reasons": missing}
