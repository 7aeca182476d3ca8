"""Updates of a model's linear layers by peft, whichever library the model is of."""

import re
from collections.abc import Callable

from peft import PeftConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel

from effllm.errors import UserError
from effllm.models.vision_language.parts import part_of
from effllm.training.adapters import without_gptqmodel
from effllm.training.methods.method import kind_of
from effllm.training.methods.targets import ALL_LINEAR, PARTLY_ADAPTED_MODEL_TYPES

_BASE = "base_model.model."
"""What peft puts before the names of the base model's modules."""


def target_layers(wanted: str | list[str], model: nn.Module, where: str) -> dict[str, nn.Linear]:
    """The linear layers that get an update, by name; `wanted` is `target_modules` of the method at `where`.

    `all-linear` is every one but the output head, another text a regular expression of whole names. A name in a list
    matches layers whose name ends in it. Those of a vision tower and of its projector get none. Raises UserError for
    what matches none, and for layers that cannot have one.
    """
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    linear = {name: layer for name, layer in linear.items() if part_of(kind_of(model), name) is None}
    head, is_tied = _head(model)
    if wanted == ALL_LINEAR:
        targets = {name: layer for name, layer in linear.items() if layer is not head}
        if not targets:
            raise UserError(
                f"{where}.target_modules: the model ({kind_of(model)}) has no linear layer but its head: "
                "leave it out of the suite."
            )
    elif isinstance(wanted, str):
        targets = {name: layer for name, layer in linear.items() if re.fullmatch(wanted, name)}
        if not targets:
            raise _no_match(wanted, model, linear, where, f"write a pattern of whole names, or {ALL_LINEAR}")
    else:
        targets = {}
        for end in wanted:
            found = {name: layer for name, layer in linear.items() if name == end or name.endswith(f".{end}")}
            if not found:
                raise _no_match(end, model, linear, where, f"choose among them, or {ALL_LINEAR}")
            targets |= found
    if is_tied and head in targets.values():
        raise UserError(
            f"{where}.target_modules: the model's output head is its input embedding too and cannot have an update: "
            "leave it out."
        )
    if kind_of(model) in PARTLY_ADAPTED_MODEL_TYPES and any(name.endswith("out_proj") for name in targets):
        raise UserError(
            f"{where}.target_modules: out_proj of the model ({kind_of(model)}) is read by its kernels past any update: "
            "name other layers."
        )
    return targets


def require_rank(rank: int, layers: dict[str, nn.Linear], where: str) -> None:
    """Raise UserError for a rank that an update of one of the layers cannot have."""
    for name, layer in layers.items():
        if rank > min(layer.in_features, layer.out_features):
            raise UserError(
                f"{where}.rank: {rank} exceeds the layer {name}, which maps {layer.in_features} to "
                f"{layer.out_features}: lower it, or leave the layer out of target_modules."
            )


def with_adapter(
    model: nn.Module,
    layers: dict[str, nn.Linear],
    wanted: str | list[str],
    where: str,
    make_config: Callable[..., PeftConfig],
) -> PeftModel:
    """The model with the updates of peft's configuration on exactly these of its layers, which `wanted` named."""
    config = make_config(
        target_modules=_names(wanted, layers, model),
        task_type="CAUSAL_LM" if hasattr(model, "prepare_inputs_for_generation") else None,
    )
    with without_gptqmodel():
        try:
            return get_peft_model(model, config)
        except ValueError as error:
            raise UserError(
                f"{where}: peft does not adapt the model ({kind_of(model)}) so: {' '.join(str(error).split())}"
            ) from None


def adapted_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """The base model's layers that have an update, by their names there."""
    layers = {}
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            base = module.get_base_layer()
            assert isinstance(base, nn.Linear)
            layers[name.removeprefix(_BASE)] = base
    return layers


def widths_of(layers: dict[str, nn.Linear]) -> list[tuple[int, int, bool]]:
    """Inputs and outputs of layers, and whether they have a bias."""
    return [(layer.in_features, layer.out_features, layer.bias is not None) for layer in layers.values()]


def rank_of(model: nn.Module) -> int:
    """The rank of the model's updates."""
    assert isinstance(model, PeftModel)
    return int(model.active_peft_config.r)


def _head(model: nn.Module) -> tuple[nn.Module | None, bool]:
    """The output head of a language model, and whether its weight is the input embedding's too."""
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    if head is None:
        return None, False
    assert isinstance(model, PreTrainedModel)
    return head, head.weight is model.get_input_embeddings().weight


def _no_match(wanted: str, model: nn.Module, linear: dict[str, nn.Linear], where: str, remedy: str) -> UserError:
    known = ", ".join(sorted({name.rpartition(".")[2] for name in linear})) or "none"
    return UserError(
        f"{where}.target_modules: {wanted!r} matches no linear layer of the model ({kind_of(model)}); it has {known}: "
        f"{remedy}."
    )


def _names(wanted: str | list[str], layers: dict[str, nn.Linear], model: nn.Module) -> str | list[str]:
    """What peft is told, so that it finds these layers and no other modules: the shortest of what does."""
    modules = [name for name, _ in model.named_modules()]
    if wanted != ALL_LINEAR and isinstance(wanted, str):
        matched = {name for name in modules if re.fullmatch(wanted, name)}
        if matched == set(layers):
            return wanted
    ends = {name.rpartition(".")[2] for name in layers}
    if {name for name in modules if name.rpartition(".")[2] in ends} == set(layers):
        return sorted(ends)
    return "|".join(re.escape(name) for name in sorted(layers))
