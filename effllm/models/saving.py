"""Checkpoints as Transformers knows them, wherever it knows the architecture."""

import shutil
from pathlib import Path

from transformers import PreTrainedModel

from effllm.models.decoder import EffForCausalLM
from effllm.models.decoder.export import export, export_format

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
"""Of a processor, beside the tokenizer."""


def save_causal_lm(model: PreTrainedModel, directory: Path) -> None:
    """Write config.json and safetensors: this package's decoder in the format of its like, if there is one."""
    if isinstance(model, EffForCausalLM) and export_format(model.config):
        export(model, directory)
    else:
        model.save_pretrained(directory)


def copy_processor(source: Path, target: Path) -> None:
    """Copy what a model's directory holds of the processor of its images; nothing for one that reads text alone."""
    for name in PROCESSOR_FILES:
        if (source / name).exists():
            shutil.copyfile(source / name, target / name)
