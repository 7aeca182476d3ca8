"""Stage `evaluate`: a model in one precision, scored on a benchmark."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from effllm.evaluation.placement import scoring_need
from effllm.models.costs import forward_flops
from effllm.models.text import context_length, text_config
from effllm.quantization import read_precision
from effllm.stages.cost import Cost, NodeContext, with_model
from effllm.stages.history import MeasuredWork, readable
from effllm.stages.request import MB, PROCESS_MB, JobContext, Request, rounded
from effllm.stages.stage import Parents, Stage
from effllm.stages.weights import asked_devices, model_directory, parents_precision_b
from effllm.study import Study
from effllm.study.evaluation import EvaluationProtocol, HeldOutBenchmark

if TYPE_CHECKING:
    from effllm.models.costs.shapes import Shape
    from effllm.runtime.artifact import Artifact
    from effllm.stages.graph import Graph


class EvaluateStage(Stage):
    """Nodes are `model.precision.benchmark`."""

    name: ClassVar[str] = "evaluate"
    module: ClassVar[str] = "effllm.evaluation.evaluate"
    version: ClassVar[int] = 2
    uses_device: ClassVar[bool] = True

    def ids(self, study: Study) -> list[str]:
        variants = [f"{model}.{precision}" for model in study.models for precision in study.precisions]
        return [f"{variant}.{benchmark}" for variant in variants for benchmark in study.benchmarks]

    def config(self, study: Study, id: str) -> dict[str, Any]:
        model, _, benchmark = id.rsplit(".", 2)
        without = []
        if not study.evaluation.shares_prefixes:
            # As it was before there was the choice.
            without.append("shares_prefixes")
        if _reference(study, id) is None:
            without.append("divergence_from")
        chat = study.models[model].chat if study.benchmarks[benchmark].takes_chat else None
        protocol = {key: value for key, value in study.evaluation.plain().items() if key not in without}
        return {"protocol": protocol} | ({} if chat is None else {"chat": chat.plain()}) | asked_devices(study, model)

    def parents(self, graph: "Graph", id: str) -> Parents:
        variant, benchmark = id.rsplit(".", 1)
        parents = {"model": graph.manifest("quantize", variant), "benchmark": graph.manifest("benchmark", benchmark)}
        reference = _reference(graph.study, id)
        return parents if reference is None else parents | {"reference": graph.manifest("quantize", reference)}

    def request(self, job: JobContext) -> Request:
        weights = job.weights()
        loaded = weights.bytes + (2 * weights.parameters if "reference" in job.inputs else 0)
        asked = job.study.models[job.id.rsplit(".", 2)[0]].devices
        gpus = job.gpus(asked, lambda: scoring_need(loaded, model_directory(job), job.study.evaluation))
        # Most of the time goes into benchmarks of thousands of requests, and grows with the parameters.
        return rounded(60 + 12 * weights.gb_16_bit, PROCESS_MB + 2 * loaded / MB, gpus=gpus)

    def devices(self, config: Mapping[str, Any]) -> int:
        return config.get("devices") or 1

    def cost(self, node: NodeContext) -> Cost:
        protocol = EvaluationProtocol.model_validate(node.config["protocol"])
        precision = (node.config_of("model") or {}).get("precision")
        name = read_precision(precision).label if precision else "a model"
        benchmark = (node.config_of("benchmark") or {}).get("benchmark", {})
        documents = benchmark.get("limit") or benchmark.get("items") or "all"
        limits = f"{documents} documents, batch {protocol.batch_size}, {protocol.max_length} tokens"
        asked = node.config.get("devices")
        base = Cost(
            asked or 1,
            f"{node.id_of('benchmark')} in {name}, {limits}",
            spreads="as asked" if asked else "as needed",
        )
        return with_model(base, node, lambda shape: _cost_of_model(protocol, node, shape))

    def measured_work(self, artifact: "Artifact") -> MeasuredWork:
        from effllm.results.evaluation import Evaluation

        evaluation = readable(Evaluation, artifact.directory)
        return MeasuredWork(evaluation.telemetry, evaluation.cost.wall_seconds) if evaluation else MeasuredWork()


def _reference(study: Study, id: str) -> str | None:
    """The variant with which a node's model is compared token by token; None where none is."""
    model, precision, benchmark = id.rsplit(".", 2)
    settings, reference = study.benchmarks[benchmark], study.evaluation.divergence_from
    is_compared = isinstance(settings, HeldOutBenchmark) and settings.task == "perplexity"
    return f"{model}.{reference}" if is_compared and reference not in (None, precision) else None


def _cost_of_model(protocol: EvaluationProtocol, node: NodeContext, shape: "Shape") -> Mapping[str, Any]:
    weights_b = parents_precision_b(node, shape)
    if protocol.divergence_from is not None:
        weights_b += parents_precision_b(node, shape, "reference")
    known = {"work": float(forward_flops(shape, 1)), "memory_least_b": weights_b}
    lengths = [length for length in (protocol.max_length, context_length(shape)) if length]
    missing = {"disk_b": "the size of the answers is known once a model was scored", "scratch_b": "not measured"}
    if not lengths:
        why = "neither evaluation.max_length nor the model limits the length of an input"
        return known | {"reasons": missing | {"memory_b": why}}
    if protocol.batch_size == "auto":
        return known | {"reasons": missing | {"memory_b": "evaluation.batch_size: auto takes what memory is there"}}
    # At the longest input: 16-bit logits, and in float32 the logarithm of their softmax, at every position of a batch.
    logits_b = protocol.batch_size * min(lengths) * text_config(shape).vocab_size * (2 + 4)
    return known | {"memory_b": weights_b + logits_b, "reasons": missing}
