"""Checkpoints as Transformers knows them, wherever it knows the architecture."""

from pathlib import Path

from transformers import PreTrainedModel

from effllm.models.decoder import EffForCausalLM
from effllm.models.decoder.export import export, export_format


def save_causal_lm(model: PreTrainedModel, directory: Path) -> None:
    """Write config.json and safetensors: this package's decoder in the format of its like, if there is one."""
    if isinstance(model, EffForCausalLM) and export_format(model.config):
        export(model, directory)
    else:
        model.save_pretrained(directory)
