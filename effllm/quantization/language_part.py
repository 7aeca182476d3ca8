"""The language model of one that reads images too: what is quantized, while tower and projector stay in 16 bits.

gptqmodel is given it alone, as the causal language model that it is; Transformers, which quantizes while it loads, is
told what to leave out.
"""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from effllm.models.loading import auto_class, load_causal_lm, load_tokenizer
from effllm.models.text import is_composite, text_config
from effllm.models.vision_language.parts import FAMILIES

if TYPE_CHECKING:
    from effllm.models.loading import CausalLM

# The decoders of the families are those of these causal language models: on text alone, Qwen's positions in several
# directions are the same number.
_CAUSAL = {"llama": "llama", "qwen2": "qwen2", "qwen2_vl_text": "qwen2", "qwen2_5_vl_text": "qwen2"}
_DECODER, _DECODER_ALONE, _HEAD = "model.language_model.", "model.", "lm_head."


def on_language_model(source: Path, target: Path, quantize: Callable[[Path, Path], None]) -> None:
    """Have `quantize` write the model in `source`, a causal language model, to `target`.

    Of a vision-language model it gets the language model in its stead, and `target` holds what it makes of that, with
    tower and projector in the same 16-bit type.
    """
    config = AutoConfig.from_pretrained(source, trust_remote_code=False, local_files_only=True)
    if config.model_type not in FAMILIES or text_config(config).model_type not in _CAUSAL:
        quantize(source, target)
        return
    # Beside the target: it takes as many bytes.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".language-") as folder:
        alone, packed = Path(folder) / "alone", Path(folder) / "packed"
        rest = _write_language_model(source, alone)
        quantize(alone, packed)
        _put_back(config, rest, packed, target)


def leave_out_vision(source: Path, settings: Any) -> None:
    """Tell Transformers' configuration of a format to quantize no layer outside the decoder of a composite model."""
    config = AutoConfig.from_pretrained(source, trust_remote_code=False, local_files_only=True)
    if not is_composite(config):
        return
    with torch.device("meta"):
        model = auto_class(source).from_config(config)
    key = "modules_to_not_convert" if hasattr(settings, "modules_to_not_convert") else "llm_int8_skip_modules"
    setattr(settings, key, sorted(_outside(model)))


def _outside(model: "CausalLM") -> Iterator[str]:
    """The names of the largest modules that are no part of the decoder: tower, projector, output head."""
    decoder = model.get_decoder()

    def within(module: nn.Module, prefix: str) -> Iterator[str]:
        for name, child in module.named_children():
            if child is decoder:
                continue
            if any(inner is decoder for inner in child.modules()):
                yield from within(child, f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}"

    return within(model, "")


def _write_language_model(source: Path, directory: Path) -> dict[str, torch.Tensor]:
    """Write the language model and its tokenizer; returns all other tensors by name."""
    whole = load_causal_lm(source)
    text = text_config(whole.config)
    settings = text.to_dict()
    rotary = {key: value for key, value in (settings.get("rope_parameters") or {}).items() if key != "mrope_section"}
    settings |= {"model_type": _CAUSAL[text.model_type], "rope_parameters": rotary, "architectures": None}
    head, table = whole.get_output_embeddings().weight, whole.get_input_embeddings().weight
    settings["tie_word_embeddings"] = head is table
    with torch.device("meta"):
        alone = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings), dtype=whole.dtype)
    tensors, rest = {}, {}
    for name, tensor in whole.state_dict().items():
        if name.startswith(_DECODER):
            tensors[_DECODER_ALONE + name.removeprefix(_DECODER)] = tensor
        elif name.startswith(_HEAD):
            tensors[name] = tensor
        else:
            rest[name] = tensor
    alone.load_state_dict(tensors, strict=True, assign=True)
    alone.tie_weights()
    alone.save_pretrained(directory)
    load_tokenizer(source).save_pretrained(directory)
    return rest


def _put_back(config: Any, rest: dict[str, torch.Tensor], packed: Path, target: Path) -> None:
    """Write the quantized language model among the other tensors, and say in config.json where it is."""
    alone = AutoConfig.from_pretrained(packed, trust_remote_code=False, local_files_only=True)
    tensors = {name: tensor.to(alone.dtype) if tensor.is_floating_point() else tensor for name, tensor in rest.items()}
    for file in sorted(packed.glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            is_head = name.startswith(_HEAD)
            tensors[name if is_head else _DECODER + name.removeprefix(_DECODER_ALONE)] = tensor
    packing = getattr(alone, "quantization_config", None)
    if packing is not None:
        outside = sorted({_part(name) for name in rest})
        within = {"block_name_to_quantize": f"{_DECODER}layers", "modules_to_not_convert": outside}
        config.quantization_config = packing | within
    config.dtype = text_config(config).dtype = alone.dtype
    config.save_pretrained(target)
    save_torch_state_dict(tensors, str(target), metadata={"format": "pt"})


def _part(name: str) -> str:
    """`model.vision_tower` of `model.vision_tower.encoder.weight`."""
    return ".".join(name.split(".")[:2])
