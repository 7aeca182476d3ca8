"""Adapters on disk in peft's own format, and base models with an adapter merged into them.

An adapter applies to the base model as it was published, whatever the method: what PiSSA moved out of the base is
subtracted when its adapter is saved, which doubles the adapter's rank. So

    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)

is the trained model, without a singular value decomposition at load.
"""

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from peft import PeftModel, get_peft_model_state_dict
from peft.import_utils import is_gptqmodel_available
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from effllm.runtime.artifact import write_text

_GPTQMODEL = "gptqmodel"
_Model = TypeVar("_Model", bound=nn.Module)


def save_adapter(
    model: PeftModel, directory: Path, base: str, revision: str | None = None, start: Path | None = None
) -> None:
    """Write the adapter of `model` as adapter_config.json and adapter_model.safetensors.

    `base` and `revision` are the name of the base model that the configuration records. `start` is what `write_start`
    wrote for an adapter that did not start at zero. The same tensors give the same files.
    """
    # peft loads the start as a second adapter of the directory's name, and removes it again.
    conversion: dict[str, Any] = {"path_initial_model_for_weight_conversion": str(start)} if start else {}
    model.save_pretrained(str(directory), **conversion)
    (directory / "README.md").unlink(missing_ok=True)
    if start and (others := beside_adapter(model)):
        # The conversion keeps the tensors of the adapter alone.
        weights = directory / SAFETENSORS_WEIGHTS_NAME
        save_file(load_file(weights) | others, weights, metadata={"format": "pt"})
    path = directory / CONFIG_NAME
    config = json.loads(path.read_text())
    # Sets come in any order, and the path of the base is this machine's.
    config |= {key: sorted(value) for key, value in config.items() if key.endswith("_modules") and type(value) is list}
    config |= {"base_model_name_or_path": base, "revision": revision}
    write_text(path, json.dumps(config, indent=2, sort_keys=True) + "\n")


def beside_adapter(model: PeftModel) -> dict[str, Tensor]:
    """What is trained of the base model's own modules, by the names of peft's files."""
    state = get_peft_model_state_dict(model)
    wanted = tuple(f"base_model.model.{name}." for name in model.active_peft_config.modules_to_save or ())
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items() if name.startswith(wanted)}


def write_start(tensors: dict[str, Tensor], directory: Path) -> None:
    """Keep the tensors with which an adapter starts, until it is saved."""
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, directory / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})


def load_adapter(base: nn.Module, adapter: Path) -> PeftModel:
    """`base` with the adapter in `adapter` beside it."""
    with without_gptqmodel():
        return PeftModel.from_pretrained(base, str(adapter))


def merge_adapter(base: _Model, adapter: Path) -> _Model:
    """`base` with the adapter in `adapter` added to its weights, in float32, and then rounded once to their own types.

    Raises ValueError if a merged weight is not finite.
    """
    types = {name: parameter.dtype for name, parameter in base.named_parameters()}
    loaded = load_adapter(base.float(), adapter)
    # Not every method's merging in peft knows what was trained beside it.
    bare: Any = loaded.base_model.model
    for name in loaded.active_peft_config.modules_to_save or ():
        parent, _, child = name.rpartition(".")
        holder = bare.get_submodule(parent)
        setattr(holder, child, getattr(holder, child).modules_to_save[loaded.active_adapter])
    merged = loaded.merge_and_unload(safe_merge=True)
    for name, parameter in merged.named_parameters():
        parameter.data = parameter.data.to(types[name])
    return merged


def why_null(figures: Mapping[str, Any], one_sample: str) -> dict[str, str]:
    """Of the figures of a fine-tuning that are None, why; `one_sample` says that a single sample was held out."""
    no_curve = "the run is shorter than log_every_steps: its loss curve has no point"
    reasons = {
        "adapter_bytes": "the model itself is trained",
        "held_out_loss_before_stderr": one_sample,
        "held_out_loss_stderr": one_sample,
        "train_loss": no_curve,
        "train_loss_last": no_curve,
    }
    return {key: why for key, why in reasons.items() if figures[key] is None}


def adapter_bytes(directory: Path) -> int:
    """Bytes of an adapter's weights on disk."""
    return (directory / SAFETENSORS_WEIGHTS_NAME).stat().st_size


@contextlib.contextmanager
def without_gptqmodel() -> Iterator[None]:
    """Keep peft from importing gptqmodel, which it does to look for quantized layers.

    The import takes a second and a hundred megabytes and sets options of torch's allocator, so that memory would depend
    on whether a method is peft's. No model here is quantized.
    """
    loaded = sys.modules.get(_GPTQMODEL)
    sys.modules[_GPTQMODEL] = None  # type: ignore[assignment]  # its import fails then
    is_gptqmodel_available.cache_clear()
    try:
        yield
    finally:
        is_gptqmodel_available.cache_clear()
        del sys.modules[_GPTQMODEL]
        if loaded is not None:
            sys.modules[_GPTQMODEL] = loaded
