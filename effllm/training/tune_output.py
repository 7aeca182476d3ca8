"""What a fine-tuned transformer is published as: what diffusers loads over the base pipeline.

An adapter is kept in peft's format. One of LoRA's form is written as `lora/` too, for `load_lora_weights`; of every
other method, `transformer/` is the whole transformer with the update in it.
"""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, PeftType
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file, save_file
from torch import nn

from effllm.models.checkpoint.headers import read_headers
from effllm.models.loading import moved
from effllm.training.adapters import save_adapter
from effllm.training.flow_transformer import FlowTransformer

_PEFT_PREFIX = "base_model.model."
# What `load_lora_weights` of diffusers looks for.
_LORA_PREFIX, _LORA_WEIGHTS, _LORA_SETTINGS = (
    "transformer.",
    "pytorch_lora_weights.safetensors",
    "lora_adapter_metadata",
)
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def save_tuned(model: FlowTransformer, base: Path, name: tuple[str, str | None], start: Path | None, to: Path) -> None:
    """Write what was trained of the pipeline in `base`, whose repository (or node) and commit are `name`."""
    transformer = model.transformer
    if isinstance(transformer, PeftModel):
        save_adapter(transformer, to / "adapter", *name, start=start)
        if transformer.peft_config["default"].peft_type == PeftType.LORA:
            _save_lora(to / "adapter", to / "lora")
            return
        merge: Callable[..., nn.Module] = moved(transformer, torch.float32).merge_and_unload
        transformer = merge(safe_merge=True)
    dtype = stored_dtype(base / "transformer")
    if next(transformer.parameters()).dtype != dtype:
        moved(transformer, dtype)
    save: Callable[[Path], None] = transformer.save_pretrained  # type: ignore[assignment]
    save(to / "transformer")


def stored_dtype(directory: Path) -> torch.dtype:
    """The type that most weights of a part of a pipeline are published in."""
    names = sorted(path.name for path in directory.glob("*.safetensors"))
    counts: Counter[str] = Counter()
    for tensor in read_headers(directory, names, str(directory)).values():
        counts[tensor.dtype] += tensor.elements
    return _DTYPES.get(counts.most_common(1)[0][0], torch.float32)


def _save_lora(adapter: Path, to: Path) -> None:
    """The adapter under diffusers' names; with one key of metadata, whose order safetensors leaves to chance."""
    config: dict[str, Any] = json.loads((adapter / CONFIG_NAME).read_text())
    tensors = load_file(adapter / SAFETENSORS_WEIGHTS_NAME)
    settings = {f"{_LORA_PREFIX}{key}": value for key, value in config.items()}
    to.mkdir()
    save_file(
        {_LORA_PREFIX + key.removeprefix(_PEFT_PREFIX): tensor for key, tensor in tensors.items()},
        to / _LORA_WEIGHTS,
        metadata={_LORA_SETTINGS: json.dumps(settings, sort_keys=True)},
    )
