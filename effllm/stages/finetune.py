"""Stage `finetune`: one method on one model of a suite."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from effllm.errors import UserError
from effllm.models.costs import activation_bytes, forward_flops, parameter_count
from effllm.stages.cost import Cost, NodeContext, number_type, with_model
from effllm.stages.history import MeasuredWork
from effllm.stages.request import JobContext, Request
from effllm.stages.stage import Parents, Stage
from effllm.stages.training import RANKS, checkpoints_b, training_request, training_state_b, training_work
from effllm.stages.weights import parameters_by_dtype, stored_b
from effllm.study import Study
from effllm.training.suites import FinetuningRun, run_of

if TYPE_CHECKING:
    from effllm.models.costs.shapes import Shape
    from effllm.runtime.artifact import Artifact
    from effllm.stages.graph import Graph


class FinetuneStage(Stage):
    """Nodes are `model.suite.method`. An artifact is a model, or an adapter where the method trains one."""

    name: ClassVar[str] = "finetune"
    module: ClassVar[str] = "effllm.training.finetune"
    version: ClassVar[int] = 2
    uses_device: ClassVar[bool] = True
    makes_model: ClassVar[bool] = True
    kept_to: ClassVar[tuple[str, ...]] = RANKS

    def ids(self, study: Study) -> list[str]:
        return [node for id, suite in study.finetuning.items() for node in suite.nodes(id)]

    def config(self, study: Study, id: str) -> FinetuningRun:
        model, suite, method = id.rsplit(".", 2)
        return run_of(study.finetuning[suite], study.methods[method], model, method)

    def parents(self, graph: "Graph", id: str) -> Parents:
        model, suite, _ = id.rsplit(".", 2)
        instructions = graph.study.finetuning[suite].instructions
        return {"model": graph.weights(model), "instructions": graph.manifest("instructions", instructions)}

    def is_measured(self, is_in_table: bool) -> bool:
        return is_in_table

    def devices(self, config: Mapping[str, Any]) -> int:
        return int(config["parallel"]["devices"])

    def request(self, job: JobContext) -> Request:
        parameters = job.weights().parameters
        run = self.config(job.study, job.id)
        sequences = run.steps(_samples(job.artifact("instructions"))) * run.samples_per_step
        # Every sequence at its full length, and a backward pass through all weights.
        flops = 6 * parameters * sequences * run.encoding.sequence_length
        return training_request(run.parallel, run.dtype, parameters, flops, not run.trains_whole_model)

    def cost(self, node: NodeContext) -> Cost:
        run = FinetuningRun.model_validate(dict(node.config))
        encoding = run.encoding
        # Lengths of samples are known once they are encoded: rates carry over between models, on the same data.
        amount = f"{run.max_steps} steps of {run.samples_per_step}" if run.max_steps else f"{run.epochs} epochs"
        data = f"{node.id_of('instructions')} to {encoding.sequence_length} tokens, packing {encoding.packing}"
        base = Cost(run.parallel.world_size, f"{node.config['method']['kind']} in {run.dtype}, {amount} of {data}")
        return with_model(base, node, lambda shape: _cost_of_model(run, shape))

    def measured_work(self, artifact: "Artifact") -> MeasuredWork:
        return training_work(artifact)

    def parameters(self, artifact: "Artifact") -> float:
        return parameters_by_dtype(artifact)


def _cost_of_model(run: FinetuningRun, shape: "Shape") -> Mapping[str, Any]:
    total, trained = parameter_count(shape).total, run.method.trained_parameters(shape)
    length = run.encoding.sequence_length
    known: dict[str, Any] = {"work": float(forward_flops(shape, length))}
    if trained is None:
        why = f"no formula counts the adapter of a {shape.model_type} on these modules"
        fixed_b = training_state_b(0, total, run.parallel, run.dtype)
        return known | {
            "memory_least_b": fixed_b,
            "reasons": dict.fromkeys(("memory_b", "disk_b", "scratch_b"), why),
        }
    fixed = total if not run.trains_whole_model else total - trained
    kept_b = activation_bytes(shape, run.micro_batch_size, length, number_type(run.dtype), run.activation_checkpointing)
    formed_b = run.method.formed_weights(shape) * number_type(run.dtype).itemsize
    kept_b += formed_b / shape.num_hidden_layers if run.activation_checkpointing else formed_b
    states_b = training_state_b(trained, fixed, run.parallel, run.dtype)
    # A model is published in the type of its base, an adapter in float32.
    stored = stored_b(shape) if run.trains_whole_model else {"disk_b": 4.0 * trained}
    return known | {
        # The activations at the longest sample that the encoding admits.
        "memory_b": states_b + kept_b,
        "memory_least_b": states_b,
        "scratch_b": checkpoints_b(trained),
        **stored,
    }


def _samples(instructions: "Artifact") -> int:
    """Training samples of instructions; 0 if they are a failed cell, on which the job does not train."""
    # Only studies that fine-tune pay for the import.
    from effllm.results.data import InstructionsSummary

    if instructions.manifest.status != "ok":
        return 0
    splits = InstructionsSummary.read(instructions.directory).splits
    if not splits or "train" not in splits:
        where = instructions.directory
        raise UserError(f"{where}/instructions.json does not count its samples: delete {where}, run again.")
    return splits["train"].samples
