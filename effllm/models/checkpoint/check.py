"""Check a model directory by its names, its configuration and the headers of its weights; without PyTorch."""

from pathlib import Path
from typing import Any

from effllm.errors import UserError
from effllm.models.checkpoint.files import read_object, weight_files
from effllm.models.checkpoint.headers import TensorHeader, read_headers
from effllm.models.checkpoint.ids import check_files_ids
from effllm.models.checkpoint.settings import check_settings, check_tensors

# What Transformers reads beside config.json, in part without a word where it cannot.
_OBJECTS = (
    "generation_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
)

# Settings that are whole numbers. Transformers takes some as they come, and fails when the model runs; others it makes
# tables of, though the weights themselves take no memory, so that a number altered by a digit may fill the machine.
_WIDTHS = ("_size", "_dim", "_heads", "_layers", "_experts", "_rank")
_LENGTHS = ("_window", "_embeddings", "_len")
_LARGEST_WIDTH, _LARGEST_LENGTH = 2**24, 2**31


def check_directory(directory: Path, where: str) -> dict[str, TensorHeader]:
    """The tensors of a model directory by name; `UserError`, beginning with `where`, for what the study cannot use."""
    config = check_settings(directory, where)
    weights = weight_files(directory, {path.name for path in directory.iterdir()}, where)
    tensors = read_headers(directory, list(weights), where)
    for name, listed in weights.items():
        for tensor in listed or ():
            if tensor not in tensors or tensors[tensor].file != name:
                raise UserError(
                    f"{where}: the index says that {name} holds {tensor[:80]!r}, which it does not; save it anew."
                )
    check_tensors(tensors, where)
    _check_sizes(config, len(tensors), where)
    check_files_ids(directory, config, where)
    for name in _OBJECTS:
        if (directory / name).exists():
            read_object(directory / name, where)
    return tensors


def _check_sizes(config: dict[str, Any], tensors: int, where: str) -> None:
    """Before anything is built from config.json: a number that was altered may stand for years of building."""
    for part in (config, config.get("text_config")):
        if not isinstance(part, dict):
            continue
        for key, value in part.items():
            largest = _LARGEST_WIDTH if key.endswith(_WIDTHS) else _LARGEST_LENGTH
            if key.endswith(_WIDTHS + _LENGTHS) and not _is_size(value, largest, key.endswith(_WIDTHS)):
                raise UserError(f"{where}: config.json: {key} {str(value)[:20]!r} is no size; correct it.")
        layers = part.get("num_hidden_layers")
        if isinstance(layers, int) and layers > tensors:
            raise UserError(
                f"{where}: config.json has num_hidden_layers {layers} and the weights are {tensors} tensors; take "
                "config.json and weights of one model."
            )


def _is_size(value: Any, largest: int, by_layer: bool) -> bool:
    """A whole number, or one for each layer; also null, a switch (use_sliding_window), and Mamba's `auto`."""
    if isinstance(value, list) and value and by_layer:
        return all(_is_size(item, largest, by_layer=False) for item in value)
    return value is None or value == "auto" or (isinstance(value, int) and abs(value) <= largest)
