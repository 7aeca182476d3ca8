"""Which of gptqmodel's kernels runs a packed checkpoint, and whether it does.

Imports of gptqmodel are inside functions: they take seconds and change the process's environment.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import GPTQConfig, PreTrainedModel

from effllm.errors import CellFailure, UserError, first_line
from effllm.models.loading import load_on
from effllm.models.placement import place
from effllm.quantization.by_loading import run_once
from effllm.quantization.device import run_device
from effllm.quantization.gptq_tensors import packed_widths
from effllm.quantization.placement import running_need
from effllm.quantization.weights import tensor_headers
from effllm.runtime.artifact import write_text

if TYPE_CHECKING:
    from effllm.quantization.gptq import GptqPrecision

_PLAIN = "gptq_torch"
"""gptqmodel's kernel in plain PyTorch, which takes every shape on every device."""


def require_kernel(settings: "GptqPrecision") -> None:
    """Raise `UserError`, before anything is quantized, if the kernel that the precision names does not run here."""
    if settings.kernel == "auto":
        return
    from gptqmodel.utils.importer import select_quant_linear

    try:
        select_quant_linear(
            bits=settings.bits,
            group_size=settings.group_size,
            desc_act=settings.act_order,
            sym=settings.symmetric,
            device=run_device(),
            backend=f"gptq_{settings.kernel}",
            pack_dtype=torch.int32,
            dtype=getattr(torch, settings.compute_dtype),
        )
    except ValueError as error:
        raise UserError(
            f"kernel: {settings.kernel!r} does not run on this machine ({str(error).rstrip('.')}); name another one in "
            "the precision, or auto, or quantize where it runs."
        ) from None


def choose_kernel(checkpoint: Path, backend: str) -> None:
    """Note in the checkpoint's config.json which of gptqmodel's kernels runs it, as Transformers' configurations do."""
    path = checkpoint / "config.json"
    content = json.loads(path.read_text())
    content["quantization_config"]["backend"] = backend
    write_text(path, json.dumps(content, indent=2, sort_keys=True) + "\n")


def kernel_of(model: PreTrainedModel) -> str | None:
    """The class of gptqmodel that runs the packed layers, such as MarlinLinear; None where no layer is packed."""
    return ", ".join(sorted({type(layer).__name__ for layer in _packed_layers(model)})) or None


def check_runs(checkpoint: Path) -> None:
    """Raise `CellFailure` if this machine's kernel refuses the checkpoint (unsupported) or it does not fit (oom).

    A refusal is what the kernel says of itself when asked, or, for what only running it shows, an error from inside a
    packed layer that the plain kernel does not have with the same weights. Any other is no verdict on the technique: a
    checkpoint that does not load or a fault of the device ends the job as it is, which can then be run again.
    """
    _require_shapes(checkpoint)
    run_or_refuse(checkpoint, _on_plain_kernel)


def run_or_refuse(checkpoint: Path, on_plain_kernel: Callable[[PreTrainedModel], Any]) -> None:
    """Run the checkpoint, as `check_runs` does once the kernel was asked for its shapes.

    `on_plain_kernel` makes the options of loading by which the plain kernel runs it.
    """
    weights_b = sum(tensor.bytes for tensor in tensor_headers(checkpoint).values())
    devices = place(running_need(weights_b, checkpoint), None)
    try:
        # The kernel is chosen for the device that is named here: moved there later, it would be the CPU's.
        model = load_on(checkpoint, devices)
    except torch.cuda.OutOfMemoryError as error:
        raise CellFailure("oom", first_line(error)) from None
    running = _watch(model)
    try:
        run_once(model)
    except torch.cuda.OutOfMemoryError as error:
        raise CellFailure("oom", first_line(error)) from None
    except (RuntimeError, ValueError) as error:
        # Compiled kernels refuse by the one and those in Python by the other; so does much else, which is sorted out.
        if isinstance(error, torch.AcceleratorError) or not running:
            raise
        run_once(load_on(checkpoint, devices, quantization_config=on_plain_kernel(model)))
        raise CellFailure(
            "unsupported",
            f"no kernel of this machine runs it unasked: gptqmodel takes {running[-1]}, which says "
            f"{first_line(error)!r}; the precision's `kernel: torch` runs it",
        ) from None


def _require_shapes(checkpoint: Path) -> None:
    """Raise `CellFailure` (unsupported) where no kernel is there, or the one taken here refuses the shape of a layer.

    Asked of the kernel before anything is loaded: an error while weights are loaded would tell of much else too.
    """
    from optimum.gptq import GPTQQuantizer

    settings = json.loads((checkpoint / "config.json").read_text())["quantization_config"]
    quantizer = GPTQQuantizer.from_dict(GPTQConfig.from_dict(settings).to_dict_optimum())
    try:
        quantizer.select_quant_linear(device_map={"": run_device()})
    except NotImplementedError as error:
        raise unsupported_kernel(error) from None
    for in_features, out_features in sorted(packed_shapes(checkpoint)):
        runs, refusal = quantizer.quant_linear.validate(
            bits=quantizer.bits,
            group_size=quantizer.group_size,
            desc_act=quantizer.desc_act,
            sym=quantizer.sym,
            in_features=in_features,
            out_features=out_features,
            pack_dtype=torch.int32,
        )
        if not runs:
            raise unsupported_kernel(refusal)


def packed_shapes(checkpoint: Path) -> set[tuple[int, int]]:
    """Input and output widths of the packed layers of a GPTQ checkpoint."""
    return set(packed_widths(tensor_headers(checkpoint)).values())


def unsupported_kernel(refusal: Exception) -> CellFailure:
    """What a kernel says of itself as the failure of a cell."""
    return CellFailure("unsupported", f"no kernel of this machine runs it: {first_line(refusal)}")


def _packed_layers(model: PreTrainedModel) -> Iterator[nn.Module]:
    return (module for module in model.modules() if hasattr(module, "qweight"))


def _watch(model: PreTrainedModel) -> list[str]:
    """The kernel of the packed layer that is at work, kept up to date while the model runs."""
    running: list[str] = []

    def begin(layer: nn.Module, _inputs: object) -> None:
        running.append(type(layer).__name__)

    def end(_layer: nn.Module, _inputs: object, _output: object) -> None:
        running.pop()

    for layer in _packed_layers(model):
        layer.register_forward_pre_hook(begin)
        layer.register_forward_hook(end)
    return running


def _on_plain_kernel(model: PreTrainedModel) -> GPTQConfig:
    """Loading by it takes the rest from the checkpoint."""
    return GPTQConfig(bits=model.config.quantization_config.bits, backend=_PLAIN)
