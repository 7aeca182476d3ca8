"""What GPTQ and AWQ have in common: gptqmodel calibrates, quantizes a layer at a time, and saves."""

import csv
import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from effllm.errors import CellFailure, UserError
from effllm.models.text import context_length
from effllm.quantization.by_loading import expert_matrices, linear_layers
from effllm.quantization.calibration import calibration_sequences
from effllm.quantization.gptq_fuse import fuse_layers
from effllm.quantization.gptqmodel_process import failures_of_the_quantizer, prepare_gptqmodel, with_tokenizer

if TYPE_CHECKING:
    from effllm.quantization.calibrated import CalibratedPrecision


def config_of(source: Path, settings: "CalibratedPrecision") -> PreTrainedConfig:
    """The configuration of the model in `source`; `CellFailure` (unsupported) where gptqmodel does not take it.

    That is an architecture that it does not know, or a group size that does not divide a layer. `UserError` where the
    model's positions are fewer than a calibration sequence has tokens.
    """
    prepare_gptqmodel()
    # gptqmodel takes seconds to import and changes the process's environment: nothing else should pay for it.
    from gptqmodel.models.auto import SUPPORTED_MODELS

    config: PreTrainedConfig = AutoConfig.from_pretrained(source, trust_remote_code=False)
    if config.model_type not in SUPPORTED_MODELS:
        raise CellFailure("unsupported", f"gptqmodel does not know model_type {config.model_type!r}")
    check_group_size(config, settings.group_size)
    if misfit := settings.calibration.misfit(context_length(config)):
        raise UserError(f"{misfit}, for this model alone in its own precisions.")
    return config


def quantize_by_gptqmodel(
    source: Path,
    target: Path,
    settings: "CalibratedPrecision",
    model_type: str,
    data: Path,
    log: Path,
    dtype: torch.dtype,
    options: dict[str, Any],
    **quantizing: Any,
) -> None:
    """Quantize the model in `source` into `target`, what is left unquantized in `dtype`; losses by layer go to `log`.

    `model_type` is the architecture's; `data` is the artifact of the corpus or of the token stream that the calibration
    names; `options` are the method's own of gptqmodel's `QuantizeConfig`, and `quantizing` of its `quantize`. Raises
    `CellFailure`: nan where the error of a layer is not a number, unsupported where gptqmodel fails, oom.
    """
    from gptqmodel import GPTQModel, QuantizeConfig

    calibration = calibration_sequences(data, source, settings.calibration)
    torch.manual_seed(settings.calibration.seed)
    config = QuantizeConfig(
        bits=settings.bits,
        group_size=settings.group_size,
        # Without a fallback a layer that saw too little text is an error, not silently rounded to nearest.
        fallback=None,
        # With offloading, gptqmodel loses the output head of some families when it saves.
        offload_to_disk=False,
        **options,
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with with_tokenizer(source, target.parent) as whole:
        with failures_of_the_quantizer(source, dtype):
            model = GPTQModel.load(str(whole), config, dtype=dtype, device=device, trust_remote_code=False)
            # What is shorter than the minimum would be left out, and only logged.
            model.quantize(calibration, batch_size=8, calibration_data_min_length=0, **quantizing)
        if whole != source:
            model.tokenizer = None
        model.save(str(target))
    fuse_layers(target, model_type)
    # The log holds seconds, which differ between runs: an observation, not part of the checkpoint.
    written = target / "quant_log.csv"
    check_losses(written)
    shutil.move(written, log)


def check_group_size(config: object, group_size: int) -> None:
    """Raise `CellFailure` unless `group_size` divides the input width of every decoder layer's linear modules.

    GPT-2 and its kin have transposed ones, and mixtures experts in one tensor: of both, what gptqmodel saves cannot be
    loaded by Transformers alone. Of a composite model gptqmodel quantizes the text decoder; a vision tower stays as
    it is.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    for name, module in model.get_decoder().named_modules():
        if isinstance(module, Conv1D):
            raise CellFailure("unsupported", f"{name} is a transposed layer (Conv1D), which gptqmodel does not pack")
    for name in expert_matrices(model):
        raise CellFailure(
            "unsupported", f"{name} is in no linear layer, and what gptqmodel makes of it Transformers does not load"
        )
    for name, module in linear_layers(model):
        if group_size > 0 and module.in_features % group_size:
            raise CellFailure(
                "unsupported", f"group_size {group_size} does not divide the input width {module.in_features} of {name}"
            )


def check_losses(log: Path) -> None:
    """Raise `CellFailure` (nan) if any layer's quantization error is not a number."""
    with open(log) as stream:
        for row in csv.DictReader(stream):
            try:
                finite = math.isfinite(float(row["loss"]))
            except ValueError:
                # AWQ's search scales no columns where other layers would have to undo it, as where heads share keys
                # and values: such a layer is rounded as it is, and no error is measured.
                finite = row["loss"] == "not applicable"
            if not finite:
                raise CellFailure(
                    "nan", f"the quantizer's error in layer {row['layer']} {row['module']} is {row['loss']}"
                )
