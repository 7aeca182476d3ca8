"""Formats into which Transformers quantizes while it loads: bitsandbytes' and torchao's."""

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from effllm.errors import CellFailure, UserError, first_line
from effllm.models.loading import load_on
from effllm.models.placement import place
from effllm.quantization.language_part import leave_out_vision
from effllm.quantization.placement import TRIED_TOKENS, quantizing_need
from effllm.quantization.weights import parameter_count

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from effllm.models.loading import CausalLM
    from effllm.quantization.precision import Precision


def quantize_by_loading(
    source: Path,
    target: Path,
    precision: "Precision",
    dtype: torch.dtype,
    config: Any,
    is_packed: Callable[[nn.Module], bool],
) -> None:
    """Quantize the model in `source` into `target`, over as many GPUs as hold the result.

    What is left unquantized is in `dtype`, as are a vision tower and its projector. `config` is Transformers' own of
    the format, and `is_packed` says of a linear layer whether it was quantized. Raises `CellFailure`: nan where a
    weight leaves the type's range, unsupported where part of the decoder stays as it was or does not run in the format,
    oom.
    """
    leave_out_vision(source, config)
    devices = place(quantizing_need(precision, parameter_count(source), source), None)
    try:
        model = _loaded(source, precision, lambda: load_on(source, devices, dtype, quantization_config=config))
        require_packed(model, is_packed)
        _require_finite(model)
        model.save_pretrained(target)
        sort_metadata(target)
        del model
        _check_runs(source, target, dtype, devices)
    except torch.cuda.OutOfMemoryError as error:
        raise CellFailure("oom", str(error).splitlines()[0]) from None


def _loaded(source: Path, precision: "Precision", load: Callable[[], "CausalLM"]) -> "CausalLM":
    """What `load` loads; `CellFailure` (unsupported) where it fails for widths that do not fit the format."""
    try:
        return load()
    except UserError:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source, trust_remote_code=False))
        widths = {f"{name}'s": module.in_features for name, module in linear_layers(model)}
        if reason := precision.misfit_of_widths(widths):
            raise CellFailure("unsupported", reason) from None
        raise


def linear_layers(model: "CausalLM") -> Iterator[tuple[str, nn.Linear]]:
    """The linear layers of the decoder, which are what is quantized: the output head stays as it is."""
    head = model.get_output_embeddings()
    for name, module in model.get_decoder().named_modules():
        if isinstance(module, nn.Linear) and module is not head:
            yield name, module


def require_packed(model: "CausalLM", is_packed: Callable[[nn.Module], bool]) -> None:
    """Raise `CellFailure` (unsupported) unless every matrix of the decoder's layers was quantized."""
    for name, module in linear_layers(model):
        if not is_packed(module):
            shape = f"{module.in_features} by {module.out_features}"
            raise CellFailure(
                "unsupported", f"{name}, {shape}, was left as it was: the format does not take its widths"
            )
    transposed = (
        f"{name}.weight"
        for name, module in model.get_decoder().named_modules()
        if isinstance(module, Conv1D) and module.weight.ndim == 2 and not is_packed(module)
    )
    for name in chain(expert_matrices(model), transposed):
        raise CellFailure("unsupported", f"{name} is in no linear layer, and would stay in 16 bits")


def expert_matrices(model: "CausalLM") -> Iterator[str]:
    """The names of a mixture's experts where they are one tensor [experts, out, in], and no linear layers."""
    for name, module in model.get_decoder().named_modules():
        for key, weight in module.named_parameters(recurse=False):
            if weight.ndim == 3 and min(weight.shape) > 1 and not isinstance(module, nn.Conv1d):
                yield f"{name}.{key}"


def sort_metadata(checkpoint: Path) -> None:
    """Bring the metadata of safetensors files into the order of their keys: safetensors writes a hash map's own.

    torchao notes each tensor's type there, and so the same weights would have other digests each time.
    """
    for path in sorted(checkpoint.glob("*.safetensors")):
        with open(path, "r+b") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(size))
            if "__metadata__" in header:
                header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
            # The order of keys does not change the length, but the file's own escapes may: blanks make up for them.
            text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
            if len(text) > size:
                raise RuntimeError(f"the header of {path} has {size} bytes, and {len(text)} once it is sorted")
            stream.seek(8)
            stream.write(text.ljust(size))


def _require_finite(model: "CausalLM") -> None:
    for name, tensor in model.state_dict().items():
        # A weight beyond the range makes its scale infinite.
        parts = [getattr(tensor, "scale", tensor)]
        quant_state = getattr(tensor, "quant_state", None)
        parts += [quant_state.absmax] if quant_state is not None else []
        if any(part.is_floating_point() and not torch.isfinite(part).all() for part in parts):
            raise CellFailure("nan", f"{name} has values beyond the range of {str(model.dtype).removeprefix('torch.')}")


def _check_runs(source: Path, target: Path, dtype: torch.dtype, devices: Sequence[str]) -> None:
    """Raise `CellFailure` (unsupported) where the model runs in 16 bits and not in the format.

    Some architectures reach into the weights of their layers, which are packed then.
    """
    try:
        run_once(load_on(target, devices))
    except torch.cuda.OutOfMemoryError:
        raise
    except (RuntimeError, NotImplementedError, AssertionError, TypeError) as error:
        if isinstance(error, torch.AcceleratorError):
            raise
        run_once(load_on(source, devices, dtype))
        raise CellFailure(
            "unsupported", f"the model runs in 16 bits and not in this format: {first_line(error)}"
        ) from None


def run_once(model: "PreTrainedModel") -> None:
    """Have the model read a few tokens: what it cannot do is the error of its own."""
    with torch.inference_mode():
        model(torch.zeros(1, TRIED_TOKENS, dtype=torch.long, device=model.device))
