"""Integer weights by GPTQ (Frantar et al., arXiv 2210.17323), computed by gptqmodel."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import AutoModelForCausalLM

from effllm.errors import CellFailure
from effllm.quantization.by_gptqmodel import config_of, quantize_by_gptqmodel
from effllm.quantization.by_loading import linear_layers
from effllm.quantization.gptq_kernels import check_runs, choose_kernel, require_kernel
from effllm.quantization.gptq_tensors import WORD_BITS

if TYPE_CHECKING:
    from effllm.models.loading import CausalLM
    from effllm.quantization.gptq import GptqPrecision


def quantize_gptq(source: Path, target: Path, settings: "GptqPrecision", data: Path, records: Path) -> None:
    """Quantize the model in `source` into `target`; the per-layer losses go to `records/gptq.csv`.

    `data` is the artifact of the corpus or of the token stream that the calibration names. Raises `CellFailure`
    (unsupported) for an architecture that gptqmodel does not know and layers that it does not group or pack, and (nan)
    where the Hessian of a layer cannot be inverted, `UserError` for a named kernel that does not run here.
    """
    config = config_of(source, settings)
    with torch.device("meta"):
        require_words(AutoModelForCausalLM.from_config(config), settings.bits)
    require_kernel(settings)
    quantize_by_gptqmodel(
        source,
        target,
        settings,
        config.model_type,
        data,
        records / "gptq.csv",
        getattr(torch, settings.compute_dtype),
        {
            "desc_act": settings.act_order,
            "act_group_aware": False,
            "sym": settings.symmetric,
            "damp_percent": settings.damping,
        },
    )
    if settings.kernel != "auto":
        choose_kernel(target, f"gptq_{settings.kernel}")
    check_runs(target)


def require_words(model: "CausalLM", bits: int) -> None:
    """Raise `CellFailure` (unsupported) for a layer whose numbers do not fill the words of 32 bits that they go into.

    Weights are packed along the input, zero points along the output.
    """
    for name, module in linear_layers(model):
        for width in (module.in_features, module.out_features):
            if width * bits % WORD_BITS:
                reason = f"{bits}-bit numbers of {name}'s width {width} do not fill words of {WORD_BITS} bits"
                raise CellFailure("unsupported", reason)
