"""Fine-tuning methods: what each makes of a base model. A method is one function and one row of `METHODS`.

| kind        | trained                                | start                   | s in W + s B A     |
|-------------|----------------------------------------|-------------------------|--------------------|
| `lora`      | A and B beside each targeted layer     | B = 0                   | alpha / rank       |
| `lora_plus` | the same, B at a multiple of A's rate  | B = 0                   | alpha / rank       |
| `rslora`    | the same                               | B = 0                   | alpha / sqrt(rank) |
| `dora`      | the same, and the norms of W's rows    | B = 0                   | alpha / rank       |
| `pissa`     | the same                               | first singular parts    | alpha / rank       |
| `freeze`    | all above the first layers             | the base model          |                    |
| `full`      | everything                             | the base model          |                    |

Low-rank updates are peft's. Weights are loaded, and methods applied, before anything is sharded over devices.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from torch import Tensor, nn
from transformers import PreTrainedModel

from effllm.errors import UserError
from effllm.models import costs
from effllm.study.methods import FreezeMethod, FullMethod, LoraPlusMethod, LowRankMethod, Method, PissaMethod
from effllm.training.adapters import without_gptqmodel


@dataclass(frozen=True)
class Tuned:
    """A model that a method has made ready for training.

    `model` has gradients where the method trains. `initial_adapter` holds the tensors of an adapter that did not start
    at zero, on the CPU by the names of peft's files, because what was learned is the difference from them.
    `learning_rate_ratio` is what a parameter's name multiplies the learning rate by.
    """

    model: PreTrainedModel | PeftModel
    initial_adapter: dict[str, Tensor] | None = None
    learning_rate_ratio: Callable[[str], float] = lambda name: 1.0

    def parameter_groups(self, model: nn.Module, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
        """The optimizer's groups: by learning rate, and by whether weights decay, which vectors do not.

        `model` is this model as it is trained: what shards it may have replaced its parameters. Groups hold trained
        parameters only, each once, in the model's order; none is empty.
        """
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                decay = weight_decay if parameter.ndim > 1 else 0.0
                key = (learning_rate * self.learning_rate_ratio(name), decay)
                groups.setdefault(key, []).append(parameter)
        return [{"params": members, "lr": rate, "weight_decay": decay} for (rate, decay), members in groups.items()]


def tune(method: Method, model: PreTrainedModel, where: str) -> Tuned:
    """Apply a method to a model; `where` is the method's key in the study, which errors name.

    Adapters are drawn from torch's global generator. Raises UserError, before anything is changed, where the method
    does not fit the model.
    """
    return METHODS[method.kind](method, model, where)


def _lora(method: LowRankMethod, model: PreTrainedModel, where: str) -> Tuned:
    return Tuned(_with_adapter(method, model, where))


def _lora_plus(method: LoraPlusMethod, model: PreTrainedModel, where: str) -> Tuned:
    """The rate of B is `learning_rate_ratio` times that of A (arXiv 2402.12354, section 4)."""
    ratio = method.learning_rate_ratio
    adapted = _with_adapter(method, model, where)
    return Tuned(adapted, learning_rate_ratio=lambda name: ratio if ".lora_B." in name else 1.0)


def _rslora(method: LowRankMethod, model: PreTrainedModel, where: str) -> Tuned:
    return Tuned(_with_adapter(method, model, where, use_rslora=True))


def _dora(method: LowRankMethod, model: PreTrainedModel, where: str) -> Tuned:
    return Tuned(_with_adapter(method, model, where, use_dora=True))


def _pissa(method: PissaMethod, model: PreTrainedModel, where: str) -> Tuned:
    """s B A starts as the first `rank` singular parts of W, and the layer keeps the rest (arXiv 2404.02948, eq. 2-4).

    By the exact decomposition: a randomised one (`pissa_niter_*`) is another at every load.
    """
    adapted = _with_adapter(method, model, where, init_lora_weights="pissa")
    state = get_peft_model_state_dict(adapted)
    return Tuned(adapted, initial_adapter={name: tensor.detach().cpu().clone() for name, tensor in state.items()})


def _freeze(method: FreezeMethod, model: PreTrainedModel, where: str) -> Tuned:
    """Fix all embeddings and the first layers, so that the backward pass ends at the first trained layer.

    An output head that shares its weight with the input embedding is fixed with it.
    """
    layers = decoder_layers(model)
    if layers is None or method.frozen_layers >= len(layers):
        count = "no list of layers" if layers is None else f"{len(layers)} layers"
        raise UserError(
            f"{where}.frozen_layers: {method.frozen_layers} leaves no layer to train, because the model "
            f"({model.config.model_type}) has {count}: fix fewer, or leave the model out of the suite."
        )
    model.requires_grad_(True)
    embeddings = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    for module in (*embeddings, *layers[: method.frozen_layers]):
        module.requires_grad_(False)
    return Tuned(model)


def _full(method: FullMethod, model: PreTrainedModel, where: str) -> Tuned:
    model.requires_grad_(True)
    return Tuned(model)


METHODS: dict[str, Callable[[Any, PreTrainedModel, str], Tuned]] = {
    "lora": _lora,
    "lora_plus": _lora_plus,
    "rslora": _rslora,
    "dora": _dora,
    "pissa": _pissa,
    "freeze": _freeze,
    "full": _full,
}


def sequence_flops(method: Method, model: PreTrainedModel | PeftModel, length: int) -> int:
    """Model FLOPs of training on one sequence of a model that `tune` has made ready."""
    if isinstance(method, FullMethod):
        return costs.training_flops(model.config, length)
    if isinstance(method, FreezeMethod):
        head_is_trained = model.get_output_embeddings().weight.requires_grad
        return costs.upper_training_flops(model.config, length, method.frozen_layers, head_is_trained)
    matrices = (weight for name, weight in model.named_parameters() if ".lora_A." in name or ".lora_B." in name)
    return costs.adapter_training_flops(model.config, length, sum(weight.numel() for weight in matrices))


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList | None:
    """The model's layers from the input upwards, or None if it does not keep them in one list."""
    count = model.config.get_text_config().num_hidden_layers
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == count]
    # Layers may hold lists of the same length, such as experts; modules() gives the outer ones first.
    return lists[0] if lists else None


def target_layers(method: LowRankMethod, model: PreTrainedModel, where: str) -> dict[str, nn.Linear]:
    """The linear layers that the method gives an update, by name.

    `all-linear` is every one but the output head. A name of `target_modules` stands for layers whose name ends in it.
    Raises UserError for a name that stands for none, for a rank beyond a layer's width, and for layers that peft does
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


def _with_adapter(method: LowRankMethod, model: PreTrainedModel, where: str, **variant: Any) -> PeftModel:
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
    """Full names of modules that share the last part of their name with a target and are none."""
    parts = {name.rpartition(".")[2] for name in targets}
    names = [name for name, _ in model.named_modules()]
    return sorted(name for name in names if name.rpartition(".")[2] in parts and name not in targets) or None


def trainable_parameters(model: nn.Module) -> int:
    """Numbers that are trained; a tensor shared by several modules counts once."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
