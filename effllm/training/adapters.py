"""Adapters on disk in peft's own format, and base models with an adapter merged into them.

An adapter applies to the base model as it was published, whatever the method: what PiSSA moved out of the base is
subtracted when its adapter is saved, which doubles the adapter's rank. So

    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)

is the trained model, without a singular value decomposition at load.
"""

import json
import tempfile
from pathlib import Path

from peft import PeftModel
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from effllm.artifact import write_text
from effllm.training.methods import Tuned


def save_adapter(tuned: Tuned, directory: Path, base: str, state: dict[str, Tensor] | None = None) -> None:
    """Write the adapter of `tuned` as adapter_config.json and adapter_model.safetensors.

    `base` is the name of the base model that the configuration records. `state` takes the place of the model's own
    tensors where they are sharded over devices. The same tensors give the same files.
    """
    model = tuned.model
    if tuned.initial_adapter is None:
        model.save_pretrained(directory, state_dict=state)
    else:
        _save_difference(model, directory, tuned.initial_adapter, state)
    (directory / "README.md").unlink(missing_ok=True)
    path = directory / CONFIG_NAME
    config = json.loads(path.read_text())
    # Sets come in any order, and the path of the base is this machine's.
    config |= {key: sorted(value) for key, value in config.items() if key.endswith("_modules") and value}
    config["base_model_name_or_path"] = base
    write_text(path, json.dumps(config, indent=2, sort_keys=True) + "\n")


def _save_difference(
    model: PeftModel, directory: Path, initial: dict[str, Tensor], state: dict[str, Tensor] | None
) -> None:
    """s (B A - B_0 A_0) as one adapter [A; A_0], [B, -B_0] over the original base."""
    with tempfile.TemporaryDirectory() as parent:
        # peft loads it as a second adapter under the directory's name.
        start = Path(parent) / "pissa_start"
        start.mkdir()
        save_file(initial, start / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
        model.save_pretrained(directory, state_dict=state, path_initial_model_for_weight_conversion=str(start))


def merge_adapter(base: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    """`base` with the adapter in `adapter` added to its weights, in float32, and then rounded once to their own types.

    Raises ValueError if a merged weight is not finite.
    """
    types = {name: parameter.dtype for name, parameter in base.named_parameters()}
    merged = PeftModel.from_pretrained(base.float(), str(adapter)).merge_and_unload(safe_merge=True)
    for name, parameter in merged.named_parameters():
        parameter.data = parameter.data.to(types[name])
    return merged


def adapter_bytes(directory: Path) -> int:
    """Bytes of an adapter's weights on disk."""
    return (directory / SAFETENSORS_WEIGHTS_NAME).stat().st_size
