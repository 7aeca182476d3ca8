"""Low-rank updates of a model's linear layers by peft."""

from typing import TYPE_CHECKING, Any

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from effllm.errors import UserError
from effllm.training.adapters import without_gptqmodel

if TYPE_CHECKING:
    from effllm.training.methods.low_rank import LowRankMethod


def target_layers(method: "LowRankMethod", model: PreTrainedModel, where: str) -> dict[str, nn.Linear]:
    """The linear layers that the method gives an update, by name.

    `all-linear` is every one but the output head. A name of `target_modules` matches layers whose name ends in it.
    Raises UserError for a name that matches none, for a rank beyond a layer's width, and for layers that peft does
    not adapt.
    """
    head = model.get_output_embeddings()
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    known = ", ".join(sorted({name.rpartition(".")[2] for name in linear})) or "none"
    if method.target_modules == "all-linear":
        targets = {name: layer for name, layer in linear.items() if layer is not head}
        if not targets:
            raise UserError(
                f"{where}.target_modules: the model ({model.config.model_type}) has no linear layer but its head: "
                "leave it out of the suite."
            )
    else:
        targets = {}
        for wanted in method.target_modules:
            found = {name: layer for name, layer in linear.items() if name == wanted or name.endswith(f".{wanted}")}
            if not found:
                raise UserError(
                    f"{where}.target_modules: {wanted!r} matches no linear layer of the model "
                    f"({model.config.model_type}); it has {known}: choose among them, or all-linear."
                )
            targets |= found
    for name, layer in targets.items():
        if method.rank > min(layer.in_features, layer.out_features):
            raise UserError(
                f"{where}.rank: {method.rank} exceeds the layer {name}, which maps {layer.in_features} to "
                f"{layer.out_features}: lower it, or leave the layer out of target_modules."
            )
    if head in targets.values() and model.config.tie_word_embeddings:
        raise UserError(
            f"{where}.target_modules: the model's output head is its input embedding too and cannot have an update: "
            "leave it out."
        )
    return targets


def with_adapter(method: "LowRankMethod", model: PreTrainedModel, where: str, **variant: Any) -> PeftModel:
    """The model with peft's LoRA layers on the targets; `variant` are keys of peft's LoraConfig."""
    targets = target_layers(method, model, where)
    config = LoraConfig(
        r=method.rank,
        lora_alpha=method.alpha,
        lora_dropout=method.dropout,
        target_modules=sorted({name.rpartition(".")[2] for name in targets}),
        exclude_modules=_excluded(targets, model),
        task_type="CAUSAL_LM",
        **variant,
    )
    with without_gptqmodel():
        try:
            return get_peft_model(model, config)
        except ValueError as error:
            raise UserError(
                f"{where}: peft does not adapt the model ({model.config.model_type}) so: {' '.join(str(error).split())}"
            ) from None


def _excluded(targets: dict[str, nn.Linear], model: PreTrainedModel) -> list[str] | None:
    """Full names of modules that are not targets but share the last part of their name with one."""
    parts = {name.rpartition(".")[2] for name in targets}
    names = [name for name, _ in model.named_modules()]
    return sorted(name for name in names if name.rpartition(".")[2] in parts and name not in targets) or None
