"""What training costs: pretraining, fine-tuning by each method, and merging."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from effllm.models.costs import activation_bytes, forward_flops, parameter_count, training_flops
from effllm.planning.cost import ON_THE_CPU, Cost, StageCost, Subject, number_type, stored_b
from effllm.study.finetuning import FinetuningRun
from effllm.study.training import Parallel, PretrainingRun

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# Of a checkpoint to resume from: float32 weights and AdamW's two moments. The Trainer keeps two and writes a third.
_CHECKPOINT_B_PER_PARAMETER = 12
_CHECKPOINTS = 3


def _pretrain(subject: Subject) -> Cost:
    run = _pretraining_run(subject)
    return Cost(run.parallel.world_size, f"{run.dtype} training")


def _pretrain_model(subject: Subject, shape: "PreTrainedConfig") -> Mapping[str, Any]:
    run, parameters = _pretraining_run(subject), parameter_count(shape).total
    flops = run.max_steps * run.global_batch_size * training_flops(shape, run.sequence_length)
    states_b = training_state_b(parameters, 0, run.parallel, run.dtype)
    kept_b = activation_bytes(
        shape, run.micro_batch_size, run.sequence_length, number_type(run.dtype), run.activation_checkpointing
    )
    return {
        "work": flops,
        "flops": flops,
        "memory_b": states_b + kept_b,
        "disk_b": 4.0 * parameters,
        "scratch_b": float(_CHECKPOINTS * _CHECKPOINT_B_PER_PARAMETER * parameters),
    }


def _pretraining_run(subject: Subject) -> PretrainingRun:
    return PretrainingRun.model_validate(dict(subject.config))


def training_state_b(trained: int, fixed: int, parallel: Parallel, dtype: str) -> float:
    """Bytes on one device of what does not depend on the batch; `trained` and `fixed` count parameters.

    Trained ones are float32 with a gradient and AdamW's two moments, fixed ones have the type of the arithmetic. What
    a strategy shards is divided by the ranks. bfloat16 is mixed precision: autocast keeps a 16-bit copy of the weights
    that it has multiplied by, of all of them where they are not sharded.
    """
    ranks = parallel.world_size
    weights_b, gradients_b, moments_b = 4.0 * trained, 4.0 * trained, 8.0 * trained
    fixed_b = float(fixed * number_type(dtype).itemsize)
    shards_weights = parallel.strategy in ("fsdp2", "zero3")
    if shards_weights:
        weights_b, fixed_b = weights_b / ranks, fixed_b / ranks
    if shards_weights or parallel.strategy == "zero2":
        gradients_b, moments_b = gradients_b / ranks, moments_b / ranks
    if parallel.offload:
        moments_b = 0.0
        if parallel.strategy == "zero3":
            weights_b = fixed_b = 0.0
    copies_b = 2.0 * trained if dtype == "bfloat16" and not shards_weights else 0.0
    return weights_b + gradients_b + moments_b + fixed_b + copies_b


def _finetune(subject: Subject) -> Cost:
    run = _finetuning_run(subject)
    encoding = run.encoding
    # Lengths of samples are known once they are encoded: rates carry over between models, on the same data.
    amount = f"{run.max_steps} steps of {run.samples_per_step}" if run.max_steps else f"{run.epochs} epochs"
    data = f"{subject.id_of('instructions')} to {encoding.sequence_length} tokens, packing {encoding.packing}"
    return Cost(run.parallel.world_size, f"{run.method.kind} in {run.dtype}, {amount} of {data}")


def _finetune_model(subject: Subject, shape: "PreTrainedConfig") -> Mapping[str, Any]:
    run, total = _finetuning_run(subject), parameter_count(shape).total
    trained = run.method.trained_parameters(shape)
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
    states_b = training_state_b(trained, fixed, run.parallel, run.dtype)
    published_b = 4.0 * trained + (fixed * number_type(run.dtype).itemsize if run.trains_whole_model else 0)
    return known | {
        # The activations at the longest sample that the encoding admits.
        "memory_b": states_b + kept_b,
        "memory_least_b": states_b,
        "disk_b": published_b,
        "scratch_b": float(_CHECKPOINTS * _CHECKPOINT_B_PER_PARAMETER * trained),
    }


def _finetuning_run(subject: Subject) -> FinetuningRun:
    return FinetuningRun.model_validate(dict(subject.config))


def _merge(subject: Subject) -> Cost:
    return Cost(1, "merge")


def _merge_model(subject: Subject, shape: "PreTrainedConfig") -> Mapping[str, Any]:
    stored = stored_b(shape)
    reasons = {"memory_b": ON_THE_CPU, "scratch_b": "not measured"} | stored.get("reasons", {})
    return {"work": float(parameter_count(shape).total)} | stored | {"reasons": reasons}


TRAINING_COSTS = {
    "pretrain": StageCost(_pretrain, _pretrain_model),
    "finetune": StageCost(_finetune, _finetune_model),
    "merge": StageCost(_merge, _merge_model),
}
