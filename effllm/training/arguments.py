"""The Trainer's arguments for a recipe: where a study's words become those of Transformers, DeepSpeed and FSDP."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import TrainingArguments

from effllm.errors import UserError
from effllm.training.settings import Parallel, Recipe

if TYPE_CHECKING:
    from torch.distributed.fsdp import MixedPrecisionPolicy


def training_arguments(recipe: Recipe, directory: Path, shuffle: bool = True) -> TrainingArguments:
    """Arguments of one rank, checkpoints below `directory`; without `shuffle` samples come in the data set's order.

    Raises UserError for fsdp2 without CUDA: Accelerate would train whole copies there and say nothing.
    """
    optimizer = recipe.optimizer
    use_cpu = not torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(directory),
        per_device_train_batch_size=recipe.micro_batch_size,
        gradient_accumulation_steps=recipe.gradient_accumulation_steps,
        max_steps=recipe.max_steps,
        learning_rate=optimizer.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        # A rate and not a value: it holds for parameter groups of differing learning rates too.
        lr_scheduler_kwargs={"min_lr_rate": optimizer.minimum_learning_rate / optimizer.learning_rate},
        warmup_steps=optimizer.warmup_steps,
        adam_beta1=optimizer.beta1,
        adam_beta2=optimizer.beta2,
        adam_epsilon=optimizer.epsilon,
        weight_decay=optimizer.weight_decay,
        max_grad_norm=optimizer.max_grad_norm,
        optim="adamw_torch_fused",
        bf16=recipe.dtype == "bfloat16",
        torch_compile=recipe.compile,
        use_cpu=use_cpu,
        seed=recipe.seed,
        data_seed=recipe.seed,
        train_sampling_strategy="random" if shuffle else "sequential",
        logging_steps=recipe.log_every_steps,
        # The filter would replace a NaN by the last good loss, and the run would go on.
        logging_nan_inf_filter=False,
        save_strategy="steps" if recipe.checkpoint_every_steps else "no",
        save_steps=recipe.checkpoint_every_steps or recipe.max_steps,
        save_total_limit=2,
        dataloader_num_workers=0,
        # Copies from pinned memory would wait for all that the device has still to do.
        accelerator_config={"non_blocking": not use_cpu},
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
        **_parallel_arguments(recipe, use_cpu),
    )
    if recipe.parallel.strategy == "fsdp2" and recipe.dtype == "bfloat16":
        arguments.fsdp_plugin_args["mixed_precision_policy"] = mixed_precision_policy()
    if recipe.parallel.strategy == "single" and arguments.n_gpu > 1:
        # The Trainer would copy the model to every GPU that it sees, and multiply the batch.
        arguments._n_gpu = 1
    return arguments


def _parallel_arguments(recipe: Recipe, use_cpu: bool) -> dict[str, Any]:
    parallel = recipe.parallel
    if parallel.strategy == "fsdp2":
        if use_cpu:
            raise UserError(
                "parallel.strategy: fsdp2 needs CUDA devices; choose ddp, zero2 or zero3, or run where there are some."
            )
        # FSDP wraps the layers that it recomputes itself; the Trainer's own way would gather every weight twice.
        checkpointing = recipe.activation_checkpointing
        return {"fsdp": True, "fsdp_config": {"version": 2, "activation_checkpointing": checkpointing}}
    arguments: dict[str, Any] = {"activation_checkpointing": recipe.activation_checkpointing}
    if recipe.activation_checkpointing:
        arguments["activation_checkpointing_kwargs"] = {"use_reentrant": False}
    if parallel.strategy.startswith("zero"):
        arguments["deepspeed"] = deepspeed_config(parallel)
    elif parallel.strategy == "ddp":
        arguments["ddp_find_unused_parameters"] = False
    return arguments


def mixed_precision_policy() -> "MixedPrecisionPolicy":
    """FSDP2's bfloat16 weights, with gradients added up in float32 and inputs and outputs as they are given.

    Accelerate's own policy does all of it in bfloat16, in which a loss of 12 is a multiple of 1/16. Inputs hold the
    number of labels that a loss is divided by, which bfloat16 would round by up to 0.4 %, and with it every gradient.
    """
    # Half a second that other strategies need not pay.
    from torch.distributed.fsdp import MixedPrecisionPolicy

    return MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)


def gather_by_layer(model: nn.Module) -> None:
    """Let ZeRO-3 gather the weights of a whole layer at once.

    It does so for every module with weights otherwise, 24 times as often for a decoder, and what that costs the host
    takes longer than the step.
    """
    from deepspeed.utils import set_z3_leaf_modules

    # PEFT's wrappers have it of what they wrap.
    layers = sorted(getattr(model, "_no_split_modules", None) or ())
    if layers:
        set_z3_leaf_modules(model, layers, raise_if_not_found=False)


def deepspeed_config(parallel: Parallel) -> dict[str, Any]:
    """DeepSpeed's configuration for zero2 and zero3; "auto" is what the Trainer fills in from its arguments.

    Source of the keys: DeepSpeed's configuration reference. The optimizer is torch's fused AdamW, on the host too:
    DeepSpeed's own would have to be compiled there first.
    """
    stage = int(parallel.strategy.removeprefix("zero"))
    zero: dict[str, Any] = {"stage": stage, "overlap_comm": True, "contiguous_gradients": True}
    if parallel.offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    if stage == 3:
        # Saving gathers the weights of all ranks.
        zero["stage3_gather_16bit_weights_on_model_save"] = True
        if parallel.offload:
            zero["offload_param"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {
        "bf16": {"enabled": "auto"},
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": zero,
    }
