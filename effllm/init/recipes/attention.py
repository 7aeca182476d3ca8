"""What would MQA, GQA, MLA and NSA cost at my shape?"""

from collections.abc import Sequence
from typing import Any, ClassVar

from effllm.errors import UserError
from effllm.init.catalog import inference_of
from effllm.init.chosen import ChosenModel
from effllm.init.recipes.compare import window_cuts
from effllm.init.recipes.recipe import Draft, Drafts, Recipe
from effllm.init.size import Cut, Size
from effllm.init.text import comment, entry, flow_lines
from effllm.init.wishes import Wishes
from effllm.models.costs import parameter_count
from effllm.models.costs.shapes import shape_of
from effllm.models.decoder.architecture import DecoderArchitecture
from effllm.telemetry.peaks import memory_b

_PRESET = "presets/recipes/attention.yaml"
_USUAL_LAYERS = 28
_USUAL = (
    "The shape is that of Qwen2.5-1.5B. --model takes another one's; by hand it is pretraining.gqa.architecture and "
    "models.gqa.source.architecture."
)
_NEEDED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
# Training one parameter takes 18 bytes, and as much memory is left to activations, which recomputing would cheapen.
_TRAINING_B_PER_PARAMETER = 18 * 2
_USUAL_MEMORY_B = 80e9
# What a processor does in seconds.
_TINY: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
}
_BLOCKS_ON_CPU = {
    "nsa_window": 32,
    "nsa_compression_block": 16,
    "nsa_compression_stride": 8,
    "nsa_selection_block": 16,
}
_RUN_ON_CPU = {"sequence_length": 128, "dtype": "float32"}
_PROTOCOL_ON_CPU = {
    "workloads": {
        "single": {"prompt_tokens": 128, "new_tokens": 16},
        "batch": {"prompt_tokens": 128, "new_tokens": 16, "batch_size": 4},
    },
    "idle_s": 0.5,
    "minimum_window_s": 0.2,
    "cooldown_s": 0.05,
    "maximum_relative_interval": 0.3,
}


class AttentionRecipe(Recipe):
    """One decoder with four attentions: training steps, prefill, decoding and cache."""

    question: ClassVar[str] = "What would MQA, GQA, MLA and NSA cost at my shape?"
    takes: ClassVar[frozenset[str]] = frozenset({"--model"})

    def drafts(self, wishes: Wishes, models: Sequence[ChosenModel]) -> Drafts:
        if len(models) > 1:
            raise UserError("--recipe attention takes the shape of one model: give --model once, or not at all.")
        shape, about = _shape_of(models[0], wishes) if models else ({}, _USUAL)
        if wishes.on_cpu:
            shape = (shape or _TINY) | _BLOCKS_ON_CPU
        inference = _PROTOCOL_ON_CPU if wishes.on_cpu else {}

        def at(size: Size) -> Draft:
            changed = shape | ({} if size.layers is None else {"num_hidden_layers": size.layers})
            sections = comment(about)
            if changed:
                words = changed.get("vocab_size")
                sections += [
                    *(entry("tokens", {"random": {"vocab_size": words}}, indent=0) if words else ()),
                    *("pretraining:", "  gqa:", "    architecture: &shape", *flow_lines(changed, indent=6)),
                    *(f"    {key}: {value}" for key, value in (_RUN_ON_CPU if wishes.on_cpu else {}).items()),
                    *("models:", "  gqa: {source: {architecture: *shape}}"),
                ]
            windows = {"repeats": size.repeats, "minimum_window_s": size.window_s}
            own = inference | {key: value for key, value in windows.items() if value is not None}
            return Draft([_PRESET], sections + (entry("inference", own, indent=0) if own else []), ["table9", "table3"])

        cuts = window_cuts(inference_of(wishes, _PRESET) | inference)
        layers = shape.get("num_hidden_layers") or _USUAL_LAYERS
        fewer = tuple(range(layers - 1, 1, -1))
        if fewer:
            cuts.append(Cut("layers", layers, fewer, lambda count: f"{count} layers"))
        return Drafts(at, cuts)


def _shape_of(model: ChosenModel, wishes: Wishes) -> tuple[dict[str, Any], str]:
    """The shape of a model as a decoder of this package has it, and what differs, in a sentence."""
    if model.facts is None:
        raise UserError(
            f"--model {model.source['repo']}: its shape is not known here, for its config.json cannot be fetched: run "
            "this where the hub is, name a local copy, or leave --model out."
        )
    numbers = {key: model.number(key) for key in _NEEDED}
    missing = [key for key, number in numbers.items() if number is None]
    if missing:
        raise UserError(
            f"--model {model.id}: its config.json has no {missing[0]}, so it is no decoder with attention whose shape "
            "could be taken: name another, or leave --model out."
        )
    shape: dict[str, Any] = {key: number for key, number in numbers.items() if number is not None}
    if key_value_heads := model.number("num_key_value_heads"):
        shape["num_key_value_heads"] = key_value_heads
    head_dim = model.number("head_dim") or shape["hidden_size"] // shape["num_attention_heads"]
    if head_dim * shape["num_attention_heads"] != shape["hidden_size"]:
        shape["head_dim"] = head_dim
    # MLA with heads as wide as the model's own; its rotated part is half of one, as DeepSeek has it.
    shape |= {"qk_nope_head_dim": head_dim, "qk_rope_head_dim": max(2, head_dim // 4 * 2), "v_head_dim": head_dim}
    layers = shape["num_hidden_layers"]
    shape["num_hidden_layers"] = 2 if wishes.on_cpu else _layers_that_fit(shape, wishes)
    about = f"The shape of {model.id}"
    if shape["num_hidden_layers"] < layers:
        why = "to take minutes" if wishes.on_cpu else "so that training fits one device"
        about += f", with {shape['num_hidden_layers']} of its {layers} layers, {why}: a layer costs the same"
    return shape, f"{about}."


def _layers_that_fit(shape: dict[str, Any], wishes: Wishes) -> int:
    most_b = (memory_b(wishes.device) if wishes.device else None) or _USUAL_MEMORY_B
    layers = shape["num_hidden_layers"]
    while layers > 1 and _parameters(shape | {"num_hidden_layers": layers}) * _TRAINING_B_PER_PARAMETER > most_b:
        layers -= 1
    return int(layers)


def _parameters(shape: dict[str, Any]) -> int:
    keys = {"model_type": "effllm", "max_position_embeddings": 8192, **shape}
    try:
        return parameter_count(shape_of(DecoderArchitecture.model_validate(keys), shape["vocab_size"])).total
    except ValueError as error:
        why = str(error).splitlines()[2 if "\n" in str(error) else 0].strip()
        raise UserError(f"--model: no decoder of this package has its shape ({why}): name another.") from None
