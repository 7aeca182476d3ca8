"""What config.json says of a model, before any library reads it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from effllm.errors import UserError
from effllm.models.checkpoint.files import ADAPTER, CONFIG, read_object
from effllm.models.checkpoint.headers import TensorHeader

# Where the makers of quantized checkpoints write what they did: in config.json, and in files of their own.
_KEYS = ("quantization_config", "compression_config", "quantization")
_FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json", "quantization_config.json")
_METHODS = ("quant_method", "quant_algo", "quant_type", "quantization_type", "format")
_BITS = ("bits", "w_bit", "wbits", "num_bits", "weight_bits", "q_bits")
_BITS_OF = {"fp8": 8, "fbgemm_fp8": 8, "finegrained_fp8": 8, "mxfp4": 4, "nvfp4": 4, "bitnet": 2, "higgs": 4}
# What stands in the checkpoints of the usual methods in place of a layer's `weight`, or beside it.
_PACKED = frozenset(
    {"qweight", "qzeros", "scales", "g_idx", "weight_packed", "weight_scale", "weight_scale_inv", "weight_shape"}
    | {"absmax", "quant_map", "SCB", "qscales", "codes", "codebooks", "blocks", "B", "s"}
)
_FLOATS = ("F64", "F32", "F16", "BF16")


def check_settings(directory: Path, where: str) -> dict[str, Any]:
    """The content of config.json; `UserError` for what the study cannot use, whatever the weights are."""
    config = read_object(directory / CONFIG, where)
    if (directory / ADAPTER).exists():
        raise UserError(
            f"{where}: {ADAPTER} makes Transformers lay an adapter over the weights; merge the adapter, or delete the "
            "file where the weights are whole without it."
        )
    found = quantization(config) or _quantization_of_files(directory)
    if found:
        raise _quantized(where, found)
    if config.get("is_encoder_decoder"):
        raise UserError(f"{where}: {_type(config)} is an encoder-decoder; name a causal language model (decoder only).")
    if config.get("transformers_weights") is not None:
        raise UserError(f"{where}: {CONFIG} names its weights itself (transformers_weights); delete the key.")
    if not isinstance(config.get("model_type"), str) or not config["model_type"]:
        raise UserError(f"{where}: {CONFIG} has no model_type; save the model anew with save_pretrained.")
    return config


def quantization(config: Mapping[str, Any]) -> str | None:
    """How config.json says that the weights are quantized, such as `gptq, 4 bits`; None where it does not."""
    for part in (config, *(value for key, value in config.items() if key.endswith("_config"))):
        if not isinstance(part, Mapping):
            continue
        for key in _KEYS:
            if part.get(key):
                return _describe(part[key])
    return None


def check_tensors(tensors: Mapping[str, TensorHeader], where: str) -> None:
    """`UserError` where the types or names of tensors are those of quantized weights that no configuration tells of."""
    for name, tensor in sorted(tensors.items()):
        leaf = name.rpartition(".")[2]
        if tensor.dtype.startswith(("F8", "F6", "F4")):
            raise _quantized(where, f"{name} is {tensor.dtype}")
        if leaf == "weight" and tensor.dtype not in _FLOATS:
            raise _quantized(where, f"{name} is {tensor.dtype}")
        if leaf in _PACKED and tensor.dtype not in _FLOATS:
            raise _quantized(where, f"it holds {name}")


def _quantized(where: str, how: str) -> UserError:
    return UserError(f"{where}: the model is quantized ({how[:120]}); name the 16-bit original.")


def _quantization_of_files(directory: Path) -> str | None:
    for name in _FILES:
        path = directory / name
        if path.is_file():
            content = read_object(path, name)
            return f"{_describe(content.get('quantization', content))}, says {name}"
    return None


def _describe(settings: Any) -> str:
    if not isinstance(settings, Mapping):
        return str(settings)
    method = next((str(settings[key]) for key in _METHODS if isinstance(settings.get(key), str)), None)
    bits = next((settings[key] for key in _BITS if isinstance(settings.get(key), int)), None)
    if settings.get("load_in_4bit") or settings.get("load_in_8bit") or settings.get("_load_in_4bit"):
        method = method or "bitsandbytes"
        bits = 4 if settings.get("load_in_4bit") or settings.get("_load_in_4bit") else 8
    groups = settings.get("config_groups")
    if bits is None and isinstance(groups, Mapping):
        weights = [group.get("weights") for group in groups.values() if isinstance(group, Mapping)]
        widths = {part.get("num_bits") for part in weights if isinstance(part, Mapping)} - {None}
        bits = " and ".join(map(str, sorted(map(str, widths)))) or None
    if bits is None and method:
        bits = _BITS_OF.get(method.lower())
    return f"{method or 'by an unnamed method'}{f', {bits} bits' if bits else ''}"


def _type(config: Mapping[str, Any]) -> str:
    return str(config.get("model_type"))[:40]
