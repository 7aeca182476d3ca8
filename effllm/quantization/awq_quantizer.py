"""AWQ by gptqmodel: quantizing, and whether this machine's kernel runs the result."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM, AwqConfig, PreTrainedModel
from transformers.utils.quantization_config import AwqBackend

from effllm.errors import CellFailure, UserError
from effllm.quantization.awq_tensors import packed_widths
from effllm.quantization.by_gptqmodel import config_of, quantize_by_gptqmodel
from effllm.quantization.by_loading import linear_layers
from effllm.quantization.device import run_device
from effllm.quantization.gptq_kernels import choose_kernel, run_or_refuse, unsupported_kernel
from effllm.quantization.weights import tensor_headers

if TYPE_CHECKING:
    from effllm.models.loading import CausalLM
    from effllm.quantization.awq import AwqPrecision

# Output channels that gptqmodel looks for a clipping bound of at once.
_CHANNELS = 64
# The kernel in plain PyTorch, as gptqmodel calls it and as Transformers does, which keeps the others' names.
_PLAIN, _PLAIN_IN_TRANSFORMERS = "awq_torch", AwqBackend.TORCH_AWQ


def quantize_awq(source: Path, target: Path, settings: "AwqPrecision", data: Path, records: Path) -> None:
    """Quantize the model in `source` into `target`; the per-layer losses go to `records/awq.csv`.

    `data` is the artifact of the corpus or of the token stream that the calibration names. Raises `CellFailure`
    (unsupported) for an architecture that gptqmodel does not know, a group size that does not divide a layer, or where
    no kernel of this machine runs it, `UserError` for a named kernel that does not run here.
    """
    config = config_of(source, settings)
    with torch.device("meta"):
        require_channels(AutoModelForCausalLM.from_config(config))
    if settings.kernel != "auto":
        try:
            _kernel(settings.plain() | {"backend": f"awq_{settings.kernel}"})
        except ValueError as error:
            raise UserError(
                f"kernel: {settings.kernel!r} does not run on this machine ({str(error).rstrip('.')}); name another "
                "one in the precision, or auto, or quantize where it runs."
            ) from None
    quantize_by_gptqmodel(
        source,
        target,
        settings,
        config.model_type,
        data,
        records / "awq.csv",
        torch.float16,
        {"method": "awq", "format": "gemm", "sym": False},
        # Packing is the same by every kernel, and by the plain one needs no GPU.
        backend=_PLAIN,
    )
    if settings.kernel != "auto":
        choose_kernel(target, _PLAIN_IN_TRANSFORMERS.value if settings.kernel == "torch" else settings.kernel)
    _check_runs(target)


def require_channels(model: "CausalLM") -> None:
    """Raise `CellFailure` (unsupported) for a layer whose output gptqmodel does not cut into its blocks.

    It asserts so in a thread, which ends the process.
    """
    for name, module in linear_layers(model):
        if module.out_features % _CHANNELS:
            raise CellFailure(
                "unsupported",
                f"{name} has {module.out_features} output channels, and the quantizer takes multiples of {_CHANNELS}",
            )


def _check_runs(checkpoint: Path) -> None:
    """As `check_runs` of GPTQ: ask the kernel that is taken here for the shape of every layer, then run it."""
    settings = json.loads((checkpoint / "config.json").read_text())["quantization_config"]
    try:
        kernel = _kernel(settings)
    except (ValueError, NotImplementedError) as error:
        raise unsupported_kernel(error) from None
    for in_features, out_features in sorted(set(packed_widths(tensor_headers(checkpoint)).values())):
        runs, refusal = kernel.validate(
            bits=settings["bits"],
            group_size=settings["group_size"],
            desc_act=False,
            sym=False,
            in_features=in_features,
            out_features=out_features,
            pack_dtype=torch.int32,
        )
        if not runs:
            raise unsupported_kernel(refusal)
    run_or_refuse(checkpoint, _on_plain_kernel)


def _kernel(settings: dict[str, Any]) -> Any:
    """The class that Transformers takes for a checkpoint of these settings on this machine."""
    from gptqmodel.quantization import METHOD
    from gptqmodel.utils.importer import hf_select_quant_linear_v2

    return hf_select_quant_linear_v2(
        bits=settings["bits"],
        group_size=settings["group_size"],
        desc_act=False,
        sym=False,
        format="gemm",
        backend=settings.get("backend", "auto"),
        device_map={"": run_device()},
        quant_method=METHOD.AWQ,
        zero_point=True,
        pack=False,
    )


def _on_plain_kernel(model: PreTrainedModel) -> AwqConfig:
    """Loading by it takes the rest from the checkpoint."""
    return AwqConfig(bits=model.config.quantization_config.bits, backend=_PLAIN_IN_TRANSFORMERS)
