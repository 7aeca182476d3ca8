"""Stage `profile`: the fixed inference workloads on a model in one precision."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from effllm.models.costs import cache_bytes
from effllm.profiling.placement import ProfileConfig, profile_need
from effllm.stages.cost import Cost, NodeContext, number_type, with_model
from effllm.stages.history import MeasuredWork, readable
from effllm.stages.request import MB, PROCESS_MB, WHOLE_NODES, JobContext, Request, rounded
from effllm.stages.stage import Parents, Stage
from effllm.stages.weights import asked_devices, model_directory, parents_precision_b
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

    def config(self, study: Study, id: str) -> dict[str, Any]:
        model = id.rsplit(".", 1)[0]
        # Specs by layers are those of before there was the choice.
        spread = {} if study.models[model].spread == "layers" else {"spread": study.models[model].spread}
        return study.inference.plain() | asked_devices(study, model) | spread

    def parents(self, graph: "Graph", id: str) -> Parents:
        return {"model": graph.manifest("quantize", id)}

    def is_measured(self, is_in_table: bool) -> bool:
        return True

    def request(self, job: JobContext) -> Request:
        weights = job.weights()
        protocol = job.study.inference
        minutes = 30 + 3 * _protocol_s(protocol) / 60 + weights.gb_16_bit
        asked = job.study.models[job.id.rsplit(".", 1)[0]].devices
        gpus = job.gpus(asked, lambda: profile_need(weights.bytes, model_directory(job), protocol))
        return rounded(minutes, PROCESS_MB + 2 * weights.bytes / MB, gpus=gpus, options=(WHOLE_NODES,))

    def devices(self, config: Mapping[str, Any]) -> int:
        return config.get("devices") or 1

    def cost(self, node: NodeContext) -> Cost:
        config = ProfileConfig.model_validate(dict(node.config))
        protocol = config.protocol()
        base = Cost(
            config.devices or 1,
            f"protocol {protocol.plain()}{', tensor' if config.spread == 'tensor' else ''}",
            protocol_s=_protocol_s(protocol),
            spreads="as asked" if config.devices else "as needed",
        )
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
        workload.batch_size
        * cache_bytes(shape, workload.prompt_tokens_at_most + workload.new_tokens, number_type("bfloat16"))
        for workload in protocol.workloads.values()
    ]
    missing = {"disk_b": "the size of the samples is known once a model was profiled", "scratch_b": "not measured"}
    return {
        "memory_b": parents_precision_b(node, shape) + max(caches_b),
        "reasons": missing,
    }
