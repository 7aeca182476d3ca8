"""Stage `quantize`: a model in one precision."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from effllm.errors import UserError
from effllm.models.checkpoint.files import CONFIG, read_object
from effllm.models.checkpoint.widths import linear_in_features
from effllm.models.costs import parameter_count
from effllm.models.placement import terms
from effllm.models.sources import LocalModelSource
from effllm.models.text import context_length
from effllm.quantization import read_precision
from effllm.quantization.placement import quantizing_need
from effllm.quantization.precision import Precision
from effllm.stages.cost import ON_THE_CPU, Cost, NodeContext, with_model
from effllm.stages.request import MB, PROCESS_MB, JobContext, Request, rounded
from effllm.stages.stage import Parents, Stage
from effllm.stages.weights import checkpoint_bytes, model_directory, precision_b
from effllm.study import Study
from effllm.study.table_graph import nodes_in_tables

if TYPE_CHECKING:
    from effllm.models.costs.shapes import Shape
    from effllm.runtime.artifact import Artifact
    from effllm.stages.graph import Graph


class QuantizeStage(Stage):
    """Nodes are `model.precision`."""

    name: ClassVar[str] = "quantize"
    module: ClassVar[str] = "effllm.quantization.quantize"
    version: ClassVar[int] = 3
    uses_device: ClassVar[bool] = True
    makes_model: ClassVar[bool] = True

    def ids(self, study: Study) -> list[str]:
        return [f"{model}.{precision}" for model in study.models for precision in study.precisions]

    def config(self, study: Study, id: str) -> dict[str, Any]:
        return {"precision": _precision(study, id).plain()}

    def parents(self, graph: "Graph", id: str) -> Parents:
        model, _ = id.rsplit(".", 1)
        parents = {"model": graph.weights(model)}
        calibration = _precision(graph.study, id).calibration_set()
        if calibration is None:
            return parents
        return parents | {calibration.stage: graph.manifest(calibration.stage, calibration.source)}

    def check_files(self, graph: "Graph", id: str) -> None:
        super().check_files(graph, id)
        model, precision = id.rsplit(".", 1)
        source = graph.study.models[model].source
        if isinstance(source, LocalModelSource) and (self.name, id) in nodes_in_tables(graph.study):
            where, settings = f"models.{model}.precisions.{precision}", _precision(graph.study, id)
            directory = Path(source.path)
            widths = linear_in_features(read_object(directory / CONFIG, f"models.{model}.source.path"))
            if misfit := settings.misfit_of_widths(widths):
                raise UserError(f"{where}: {misfit}")
            calibration = settings.calibration_set()
            if calibration and (misfit := calibration.misfit(context_length(terms(directory)))):
                raise UserError(f"{where}.{misfit}.")

    def request(self, job: JobContext) -> Request:
        weights = job.weights()
        precision = _precision(job.study, job.id)
        minutes, minutes_per_gb = precision.job_minutes
        gpus = 1
        if precision.works_on_device:
            gpus = job.gpus(None, lambda: quantizing_need(precision, weights.parameters, model_directory(job)))
        return rounded(minutes + minutes_per_gb * weights.gb_16_bit, PROCESS_MB + 3 * weights.bytes / MB, gpus=gpus)

    def cost(self, node: NodeContext) -> Cost:
        precision = node.config["precision"]
        settings = read_precision(precision)
        base = Cost(1, settings.work, spreads="as needed" if settings.works_on_device else None)
        return with_model(base, node, lambda shape: _cost_of_model(precision, shape))

    def parameters(self, artifact: "Artifact") -> float:
        precision = read_precision(artifact.manifest.spec["config"]["precision"])
        return checkpoint_bytes(artifact) * 8 / precision.nominal_bits


def _precision(study: Study, id: str) -> Precision:
    return study.precision_of(*id.rsplit(".", 1))


def _cost_of_model(precision: Mapping[str, Any], shape: "Shape") -> Mapping[str, Any]:
    on_device = read_precision(precision).works_on_device
    reason = "a quantizer has layers in 16 bits beside what they become: no formula has its peak"
    stored_b = precision_b(shape, precision)
    return {
        "work": float(parameter_count(shape).total),
        "disk_b": stored_b,
        # It is tried once it is written.
        "memory_least_b": stored_b if on_device else None,
        "reasons": {"memory_b": reason if on_device else ON_THE_CPU, "scratch_b": "not measured"},
    }
