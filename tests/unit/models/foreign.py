"""Tiny models as other people publish them: a directory of config.json, safetensors and a tokenizer."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from effllm.models.checkpoint.files import model_files
from effllm.models.import_model import build
from effllm.runtime.artifact import Artifact
from effllm.runtime.stage import run
from effllm.stages import STAGES

ROWS = 320
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SHAPE = {
    "vocab_size": ROWS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}


def write_model(
    directory: Path, model_type: str = "llama", dtype: torch.dtype = torch.bfloat16, **settings: Any
) -> Path:
    """Save a model of a few thousand weights, and a byte-level tokenizer with fewer words than it has rows."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**SHAPE, **IDS, **settings})
    save(AutoModelForCausalLM.from_config(config).to(dtype), directory)
    return directory


def write_composite(directory: Path) -> Path:
    """Save a Gemma 3 of text and images, whose vision tower is 24 wide, so that no group of 32 divides it."""
    torch.manual_seed(0)
    vision = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**SHAPE, **IDS, "head_dim": 16, "num_attention_heads": 2, "num_key_value_heads": 1, "hidden_size": 64}
    marks = {"boi_token_index": 3, "eoi_token_index": 4, "image_token_index": 5, "mm_tokens_per_image": 1}
    config = AutoConfig.for_model(
        "gemma3",
        text_config={**text, "intermediate_size": 64},
        vision_config={**vision, "image_size": 28, "patch_size": 14},
        **marks,
    )
    save(AutoModelForCausalLM.from_config(config).to(torch.bfloat16), directory)
    return directory


def save(model: Any, directory: Path) -> None:
    """Write the model with the tokenizer."""
    model.save_pretrained(directory)
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=ROWS - 20,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words.train_from_iterator(["the quick brown fox jumps over the lazy dog"] * 10, trainer)
    marks = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    PreTrainedTokenizerFast(tokenizer_object=words, **marks).save_pretrained(directory)


def import_model(directory: Path, results: Path, id: str = "x") -> Artifact:
    """Run the stage `model` on a directory as the workflow does: with the files of the graph."""
    files = model_files(directory, f"models.{id}.source.path")
    version = STAGES["model"].version
    spec = {"stage": "model", "version": version, "config": {"kind": "local", "path": str(directory)}}
    return run(STAGES["model"], build, spec=spec, inputs={"files": files}, output=results / "model" / id)


def edit(directory: Path, name: str, **changes: Any) -> None:
    """Change keys of a JSON file; None deletes one."""
    path = directory / name
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def edit_weights(directory: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Change the tensors of model.safetensors."""
    path = directory / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})


def add_token(directory: Path, **special: str) -> None:
    """Give the tokenizer words beyond the model's rows, the last of which is the named special token."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.add_tokens([f"<extra{index}>" for index in range(ROWS - len(tokenizer))])
    if special:
        tokenizer.add_special_tokens(special)
    tokenizer.save_pretrained(directory)
