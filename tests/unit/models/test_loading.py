"""What loading says of files that the libraries cannot read, and what it leaves to others."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from effllm.errors import CellFailure, UserError
from effllm.models.loading import load_causal_lm, load_tokenizer, reading
from tests.unit.models.foreign import edit, edit_weights, write_model


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("whole") / "llama")


@pytest.fixture
def directory(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "artifact" / "model")


def unlink(name: str) -> Callable[[Path], Any]:
    return lambda directory: (directory / name).unlink()


@pytest.mark.parametrize(
    ("change", "load"),
    [
        (lambda d: os.truncate(d / "model.safetensors", 1000), load_causal_lm),
        (lambda d: os.truncate(d / "model.safetensors", 0), load_causal_lm),
        (unlink("model.safetensors"), load_causal_lm),
        (unlink("config.json"), load_causal_lm),
        (lambda d: edit(d, "config.json", model_type="t5"), load_causal_lm),
        (lambda d: edit(d, "config.json", hidden_act="nonsense"), load_causal_lm),
        (lambda d: edit(d, "config.json", num_attention_heads=3), load_causal_lm),
        (lambda d: edit(d, "config.json", pad_token_id=320), load_causal_lm),
        (lambda d: edit(d, "config.json", rope_parameters={"rope_type": "yarn"}), load_causal_lm),
        (lambda d: (d / "adapter_config.json").write_text("{}"), load_causal_lm),
        (lambda d: (d / "generation_config.json").write_text("[]"), load_causal_lm),
        (lambda d: edit_weights(d, lambda t: t.update({"model.norm.weight": torch.ones(33)})), load_causal_lm),
        (unlink("tokenizer.json"), load_tokenizer),
        (lambda d: (d / "tokenizer.json").write_text("{}"), load_tokenizer),
        (lambda d: (d / "tokenizer_config.json").write_text("[]"), load_tokenizer),
    ],
)
def test_files_that_cannot_be_read_are_named_in_a_sentence(
    directory: Path, change: Callable[[Path], Any], load: Callable[[Path], Any]
) -> None:
    change(directory)
    with pytest.raises(UserError) as caught:
        load(directory)
    sentence = str(caught.value)
    assert sentence.startswith(f"{directory} cannot be loaded (")
    assert f"delete {directory.parent} and run again" in sentence
    assert "\n" not in sentence
    assert len(sentence) - 2 * len(str(directory)) < 400


@pytest.mark.parametrize(
    "error",
    [
        CellFailure("nan", "no number"),
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
        OSError(errno.ENOSPC, "No space left on device"),
        PermissionError(errno.EACCES, "Permission denied", "config.json"),
    ],
)
def test_what_says_nothing_of_the_files_passes_through(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(type(error)) as caught, reading(tmp_path):
        raise error
    assert caught.value is error


def test_outputs_are_read_by_name_whatever_the_configuration_asks(directory: Path) -> None:
    edit(directory, "config.json", return_dict=False)
    model = load_causal_lm(directory)
    ids = torch.tensor([[1, 2, 3]])
    assert model(ids).logits.shape[:2] == (1, 3)
    assert model.generate(ids, max_new_tokens=2, do_sample=False).shape == (1, 5)
