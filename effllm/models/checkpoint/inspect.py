"""Inspect a model directory: everything that a later stage would stumble over, before anything is published.

The comparison of weights with the configuration is Transformers' own: it loads the checkpoint onto the meta device,
with its renamings and fusions, and says what is missing, unexpected or of another shape.
"""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import PreTrainedModel

# Registers the decoder: its variants that Transformers does not know are models too.
import effllm.models.decoder.model  # noqa: F401
from effllm.errors import UserError, reason_of
from effllm.models.checkpoint.check import check_directory
from effllm.models.checkpoint.headers import TensorHeader
from effllm.models.checkpoint.ids import TOKEN_IDS, check_ids
from effllm.models.checkpoint.words import inspect_tokenizer
from effllm.models.loading import auto_class, weight_difference
from effllm.models.text import context_length, is_composite, text_config
from effllm.results.model import ModelRecord

_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def inspect_model(directory: Path, where: str, has_tokenizer: bool = True) -> ModelRecord:
    """What the model in `directory` is; `UserError`, beginning with `where`, for what a later stage could not use.

    Reads every weight once and builds nothing that takes memory.
    """
    tensors = check_directory(directory, where)
    model = _build(directory, where)
    tensors = _loaded(model, tensors)
    config, text = model.config, text_config(model.config)
    rows = model.get_input_embeddings().get_parameter("weight").shape[0]
    for part in (config, text):
        # What config.json leaves out comes from the family, whose own ids may lie beyond a smaller vocabulary.
        check_ids({key: getattr(part, key, None) for key in TOKEN_IDS}, rows, f"{where}: config.json")
    _require_finite(directory, tensors, where)
    tied = _tied_head(model, directory, tensors, where)
    weights: Counter[str] = Counter()
    for tensor in tensors.values():
        weights[_DTYPES.get(tensor.dtype, tensor.dtype)] += tensor.elements
    return ModelRecord(
        architecture=type(model).__name__,
        model_type=config.model_type,
        weights=dict(sorted(weights.items())),
        bytes=sum(tensor.bytes for tensor in tensors.values()),
        tied_head=tied,
        context_length=context_length(config),
        embedding_rows=rows,
        is_composite=is_composite(config),
        tokenizer=inspect_tokenizer(directory, rows, where) if has_tokenizer else None,
    )


def _build(directory: Path, where: str) -> PreTrainedModel:
    """The model on the meta device, its names and shapes compared with the checkpoint's."""
    try:
        # With the loading information a pair, which its type does not say.
        built: Any = auto_class(directory).from_pretrained(
            directory,
            dtype="auto",
            device_map="meta",
            trust_remote_code=False,
            local_files_only=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except MemoryError:
        raise
    # Everything that Transformers raises on a configuration that it cannot build, which is nearly every type.
    except Exception as error:
        raise UserError(
            f"{where}: Transformers cannot build the model from config.json ({reason_of(error)}); choose a causal "
            "language model that it knows, or correct the file."
        ) from error
    model, keys = built
    if difference := weight_difference(keys):
        raise UserError(
            f"{where}: for the model that config.json describes, the checkpoint {difference}; take config.json and "
            "weights of one model, saved by save_pretrained."
        )
    return model


def _loaded(model: PreTrainedModel, tensors: Mapping[str, TensorHeader]) -> dict[str, TensorHeader]:
    """The tensors that loading takes: a family may have names, such as those of old buffers, that it passes over."""
    # Transformers adds the last one itself, for all families with rotary positions.
    patterns = [*(model._keys_to_ignore_on_load_unexpected or ()), r"rotary_emb\.inv_freq"]
    ignored = [re.compile(pattern) for pattern in patterns]
    return {name: tensor for name, tensor in tensors.items() if not any(p.search(name) for p in ignored)}


def _require_finite(directory: Path, tensors: Mapping[str, TensorHeader], where: str) -> None:
    for file in sorted({tensor.file for tensor in tensors.values()}):
        with safe_open(directory / file, framework="pt") as content:
            for name in (name for name, tensor in tensors.items() if tensor.file == file):
                if not torch.isfinite(content.get_tensor(name)).all():
                    raise UserError(f"{where}: {name} in {file} holds NaN or infinite values; fetch or save it again.")


def _tied_head(model: PreTrainedModel, directory: Path, tensors: Mapping[str, TensorHeader], where: str) -> bool:
    """Whether the output head is the input table; `UserError` where the configuration says so and the weights differ.

    Transformers loads such a head as it is and only warns, but every count of parameters goes by the configuration.
    """
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None:
        return False
    if head.weight is table.weight:
        return True
    modules = {module: name for name, module in model.named_modules()}
    names = [_stored(modules[module], tensors) for module in (head, table)]
    stored = [name for name in names if name is not None]
    if not getattr(model.config, "tie_word_embeddings", False) or len(stored) < len(names):
        return False
    weights: list[torch.Tensor] = []
    for name in stored:
        with safe_open(directory / tensors[name].file, framework="pt") as content:
            weights.append(content.get_tensor(name))
    if not torch.equal(*weights):
        raise UserError(
            f"{where}: config.json has tie_word_embeddings true, but {stored[0]} and {stored[1]} differ; set it to "
            "false."
        )
    return True


def _stored(module: str, tensors: Mapping[str, TensorHeader]) -> str | None:
    """The name under which a checkpoint holds a module's weight: files may leave out or add a prefix."""
    leaf = f"{module.rpartition('.')[2]}.weight"
    return next((name for name in tensors if name == leaf or name.endswith(f".{leaf}")), None)
