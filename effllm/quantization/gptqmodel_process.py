"""gptqmodel in a process that is not its own: what it needs before it is imported, and errors that can be caught."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from effllm.errors import CellFailure, reason_of
from effllm.models.loading import load_causal_lm
from effllm.quantization.by_loading import run_once

_END = "</s>"


def prepare_gptqmodel() -> None:
    """What must be set before gptqmodel is imported."""
    # It splits its CPU pool between loading and quantizing and needs two workers, even on one core.
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", str(max(torch.get_num_threads(), 2)))


@contextmanager
def with_tokenizer(source: Path, beside: Path) -> Iterator[Path]:
    """The model in `source` with a tokenizer, without which gptqmodel loads none: random weights get a stand-in.

    What leads there is a directory of links in the directory `beside`, for as long as the block runs.
    """
    if (source / "tokenizer_config.json").exists():
        yield source
        return
    with tempfile.TemporaryDirectory(dir=beside, prefix=".with-tokenizer-") as folder:
        words = Tokenizer(models.WordLevel({_END: 0}, unk_token=_END))
        PreTrainedTokenizerFast(tokenizer_object=words, eos_token=_END, pad_token=_END).save_pretrained(folder)
        for path in source.iterdir():
            (Path(folder) / path.name).symlink_to(path.resolve())
        yield Path(folder)


@contextmanager
def failures_of_the_quantizer(source: Path, dtype: torch.dtype) -> Iterator[None]:
    """Turn what ends gptqmodel's work on the model in `source` into `CellFailure`: oom, or unsupported in its words.

    It works in threads, and ends the process where one of them fails; here the error comes out of the block instead.
    What the model cannot do in 16 bits either, and a fault of the machine, is no verdict on the quantizer.
    """
    from gptqmodel.utils.threadx import _DeviceWorker

    ends, _DeviceWorker._abort_process = _DeviceWorker._abort_process, lambda _worker, _error: None
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise CellFailure("oom", reason_of(error)) from None
    except (torch.AcceleratorError, OSError, MemoryError):
        raise
    except Exception as error:
        run_once(load_causal_lm(source, dtype))
        words = f"{type(error).__name__}: {reason_of(error)}"
        raise CellFailure("unsupported", f"the model runs in 16 bits, and gptqmodel fails in it ({words})") from error
    finally:
        _DeviceWorker._abort_process = ends
