"""Checkpoints and tokenizers of this study, loaded whole or not at all."""

import errno
import json
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

# Registers the decoder: its variants that Transformers does not know are saved in its own format.
import effllm.models.decoder.model  # noqa: F401
from effllm.errors import CellFailure, UserError, reason_of
from effllm.models.checkpoint.files import CONFIG, stray_names
from effllm.models.checkpoint.ids import GENERATION_CONFIG
from effllm.models.placement import device_map, keep_hooks_at_parts, require_on_devices
from effllm.models.text import text_config
from effllm.models.vision_language.windows import attend_by_windows

if TYPE_CHECKING:

    class CausalLM(PreTrainedModel):
        """A model of Transformers that generates, by a mixin of its own class."""

        def generate(self, inputs: torch.Tensor, **options: Any) -> torch.Tensor: ...

        def _supports_logits_to_keep(self) -> bool: ...


_Module = TypeVar("_Module", bound=torch.nn.Module)
_MOST_NAMES = 3
# Where processors of vision-language models kept the chat template before tokenizers read a file of their own.
_PROCESSOR_TEMPLATE = "chat_template.json"
# Errors of the system that tell of the checkpoint; any other, such as a full disk, tells of the machine.
_OF_THE_FILES = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL)
_OUT_OF_MEMORY = ("out of memory", "not enough memory", "allocate memory")


def load_causal_lm(checkpoint: Path, dtype: Any = "auto", **options: Any) -> "CausalLM":
    """The model in `checkpoint` that continues text, and text with images where it is a vision-language model.

    Raises `CellFailure` (unsupported) unless every weight was loaded.

    Transformers fills weights that a checkpoint lacks at random, and only warns. `options` are those of
    `from_pretrained`. `UserError` where Transformers or safetensors cannot read what is there.
    """
    for stray in stray_names(checkpoint):
        raise _unreadable(checkpoint, stray)
    with reading(checkpoint):
        # With the loading information a pair, which its type does not say.
        loaded: Any = auto_class(checkpoint).from_pretrained(
            checkpoint,
            dtype=dtype,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            # Compared below: by itself Transformers says that there are some, and prints a table.
            ignore_mismatched_sizes=True,
            **_plain_generation(checkpoint),
            **options,
        )
    model, keys = loaded
    if keys["mismatched_keys"]:
        raise _unreadable(checkpoint, f"it holds in another shape {_some(keys['mismatched_keys'])}")
    require_all_weights(keys)
    attend_by_windows(model)
    for config in (model.config, text_config(model.config)):
        if getattr(config, "output_router_logits", False):
            # A note of whoever trained it. In decoding Transformers would compute a balancing loss of the one new token
            # with the mask of the whole sequence, which ends in an error where rows are padded.
            config.output_router_logits = False
        # Another such note: everything here, as in Transformers' own `generate`, reads outputs by name.
        config.return_dict = True
    return model


def load_on(checkpoint: Path, devices: Sequence[str], dtype: Any = "auto", **options: Any) -> "CausalLM":
    """As `load_causal_lm`, on one device or in whole layers over several; `CellFailure` (oom) where it does not fit."""
    model = load_causal_lm(checkpoint, dtype, **device_map(devices), **options)
    require_on_devices(model, devices)
    if len(devices) > 1:
        keep_hooks_at_parts(model)
    return model


def auto_class(checkpoint: Path) -> Any:
    """The class of Transformers that loads the model: of those that read text and images for those that it has no
    causal language model of.
    """
    config = AutoConfig.from_pretrained(checkpoint, trust_remote_code=False, local_files_only=True)
    reads_images = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    is_causal = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    return AutoModelForImageTextToText if reads_images and not is_causal else AutoModelForCausalLM


def moved(model: _Module, place: str | torch.dtype) -> _Module:
    """`model` itself, on that device or in that type: `to`, which Transformers declares without types."""
    model.to(place)
    return model


def _plain_generation(checkpoint: Path) -> dict[str, GenerationConfig]:
    """The option that replaces generation settings which Transformers refuses, which would otherwise end the loading.

    The study decodes by settings of its own, and `decode_greedily` names what the files asked for.
    """
    file = GENERATION_CONFIG if (checkpoint / GENERATION_CONFIG).exists() else CONFIG
    return {"generation_config": GenerationConfig()} if _refused(checkpoint, file) else {}


def keep_refused_generation(source: Path, target: Path) -> None:
    """Copy generation settings that Transformers refuses, and so neither loads nor saves, to a copy of the model."""
    if (source / GENERATION_CONFIG).exists() and _refused(source, GENERATION_CONFIG):
        shutil.copyfile(source / GENERATION_CONFIG, target / GENERATION_CONFIG)


def _refused(checkpoint: Path, file: str) -> bool:
    try:
        GenerationConfig.from_pretrained(
            checkpoint, config_file_name=file, _from_model_config=file == CONFIG, local_files_only=True
        )
    except ValueError:
        return True
    # The file itself is at fault, as loading says.
    except (OSError, TypeError):
        return False
    return False


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a model's directory; `UserError` where Transformers cannot read it."""
    with reading(directory):
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
        if not tokenizer.chat_template and (directory / _PROCESSOR_TEMPLATE).exists():
            tokenizer.chat_template = json.loads((directory / _PROCESSOR_TEMPLATE).read_bytes())["chat_template"]
        return tokenizer


@contextmanager
def reading(directory: Path) -> Iterator[None]:
    """Turn what Transformers, tokenizers and safetensors say of files that they cannot read into a `UserError`.

    They raise nearly every type there is. Failures of a cell, a lack of memory and faults of the device or of the file
    system pass through: they say nothing of the files.
    """
    try:
        yield
    except (CellFailure, UserError, MemoryError, torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except Exception as error:
        of_the_machine = isinstance(error, OSError) and error.errno and error.errno not in _OF_THE_FILES
        if of_the_machine or any(sign in str(error).lower() for sign in _OUT_OF_MEMORY):
            raise
        raise _unreadable(directory, reason_of(error)) from error


def _unreadable(directory: Path, reason: str) -> UserError:
    return UserError(
        f"{directory} cannot be loaded ({reason}): delete {directory.parent} and run again, or choose another model "
        "where that does not help."
    )


def require_all_weights(keys: Mapping[str, Collection[Any]]) -> None:
    """Raise `CellFailure` (unsupported) unless checkpoint and model hold the same tensors.

    `keys` is what `from_pretrained(..., output_loading_info=True)` returns beside the model. A figure of a model with
    layers at random values would look like any other.
    """
    if difference := weight_difference(keys):
        raise CellFailure("unsupported", f"the checkpoint {difference}")


def weight_difference(keys: Mapping[str, Collection[Any]]) -> str | None:
    """How a checkpoint's tensors differ from the model's, as `lacks ...`; None where they are the same."""
    for what, names in (
        ("lacks", keys["missing_keys"]),
        ("holds what the model has not:", keys["unexpected_keys"]),
        ("holds in another shape", keys["mismatched_keys"]),
    ):
        if names:
            return f"{what} {_some(names)}"
    return None


def _some(names: Collection[Any]) -> str:
    # A mismatch comes as (name, shape in the checkpoint, shape in the model).
    plain = sorted(name if isinstance(name, str) else str(name[0]) for name in names)
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return f"{', '.join(plain[:_MOST_NAMES])}{more}"
