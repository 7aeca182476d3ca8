"""Over how many GPUs of one host a model is spread, from its bytes. torch is imported once a model is placed.

    GPUs = (weights + caches) / (0.9 * memory of a GPU - workspace), rounded up

Weights and caches are divided among the GPUs by whole layers; the workspace, which is what one layer and the head make
beside them, is on each. A tenth of the memory is left to the driver, to fragmentation and to layers that do not divide.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

from effllm.errors import CellFailure, UserError
from effllm.models.costs import cache_bytes, describe
from effllm.models.text import text_config

GB = 1e9
USABLE = 0.9
Spread = Literal["layers", "tensor"]
"""Over several devices: whole layers on each, which work one after the other, or a part of every layer on each."""
Placement = Literal["one device", "layers", "tensor"]
"""How a model is on its devices: whole on one, or spread over several."""
_HALF: Any = SimpleNamespace(itemsize=2)


@dataclass(frozen=True)
class Need:
    """Bytes that a model needs where it runs: weights and caches, which are spread, and the workspace of every GPU."""

    weights_b: float
    caches_b: float = 0.0
    workspace_b: float = 0.0

    @property
    def spread_b(self) -> float:
        """What the GPUs share."""
        return self.weights_b + self.caches_b

    def gpus(self, memory_b: float) -> int | None:
        """How many GPUs of so much memory it takes; None where the workspace alone is too large for one."""
        room_b = USABLE * memory_b - self.workspace_b
        return math.ceil(self.spread_b / room_b) if room_b > 0 else None

    def sentence(self, gpus: int, memory_b: float) -> str:
        """That so many GPUs do not hold it, with the numbers."""
        needed = self.gpus(memory_b)
        remedy = "no number of them does" if needed is None else f"{needed} of them do"
        return (
            f"weights of {self.weights_b / GB:.1f} GB and caches of {self.caches_b / GB:.1f} GB, with a workspace of "
            f"{self.workspace_b / GB:.1f} GB on each GPU, do not fit {gpus} of {memory_b / GB:.1f} GB; {remedy}"
        )


def need_of(weights_b: float, directory: Path, batches: Sequence[tuple[int, int, int]], scores: bool = False) -> Need:
    """What the model in `directory` needs, whose weights take `weights_b`.

    `batches` are (sequences, tokens that are read at once, tokens that the cache holds). `scores`: the logits of all
    tokens are made, as for log-likelihoods, and not of the last ones alone. An architecture without cost formulas is
    taken to need its weights and a tenth more.
    """
    shape = terms(directory)
    try:
        caches_b = max(count * cache_bytes(shape, held, _HALF) for count, _, held in batches)
        # What a layer makes at a time is at most what it would keep for a backward pass. Logits are in 16 bits, and
        # in float32 where they are chosen from or scored.
        layer = describe(shape).layer.saved_elements * _HALF.itemsize
        workspaces_b = [
            count * (read * layer + (read if scores else 1) * shape.vocab_size * (2 + 4)) for count, read, _ in batches
        ]
    except (AttributeError, KeyError, TypeError, ValueError):
        return Need(weights_b, workspace_b=0.1 * weights_b)
    return Need(weights_b, caches_b, max(workspaces_b))


def terms(directory: Path) -> Any:
    """What a checkpoint's config.json says of its decoder, where Transformers' classes are not worth their import."""
    return text_config(_content(directory))


def _content(directory: Path) -> SimpleNamespace:
    try:
        content = json.loads((directory / "config.json").read_bytes())
    except (OSError, ValueError):
        return SimpleNamespace()
    if not isinstance(content, dict):
        return SimpleNamespace()
    content |= content.get("text_config") or {}
    if content.get("use_sliding_window") is False:
        content["sliding_window"] = None
    heads = content.get("num_attention_heads")
    return SimpleNamespace(**{"num_key_value_heads": heads, "tie_word_embeddings": False} | content)


def place(need: Need, asked: int | None) -> list[str]:
    """The devices of this job that a model is loaded on: `asked`, or as many as its bytes need.

    Before anything is loaded: `CellFailure` (oom) where all that the job has do not hold it, `UserError` where it has
    fewer than the study asks for.
    """
    import torch

    if not torch.cuda.is_available():
        return ["cpu"]
    there = torch.cuda.device_count()
    if asked is not None and asked > there:
        raise UserError(f"the model's `devices` asks for {asked} GPUs and this job has {there}: lower it in the study.")
    memory_b = float(torch.cuda.get_device_properties(0).total_memory)
    count = asked or choose(need, there, memory_b)
    return [f"cuda:{place}" for place in range(count)]


def choose(need: Need, there: int, memory_b: float) -> int:
    """How many of the GPUs that are there, of so much memory each, a model gets; `CellFailure` (oom) where too few."""
    needed = need.gpus(memory_b)
    if needed is not None and needed <= there:
        return needed
    # Without the margin it may still fit, and then it is tried.
    if need.spread_b > there * memory_b or needed is None:
        raise CellFailure("oom", need.sentence(there, memory_b))
    return there


def device_map(devices: Sequence[str]) -> dict[str, Any]:
    """Options of `load_causal_lm` that put a model there: whole on one, or even shares of whole layers on several."""
    if len(devices) == 1:
        return {"device_map": {"": devices[0]}}
    import torch

    memory = {number: torch.cuda.get_device_properties(number).total_memory for number in range(len(devices))}
    return {"device_map": "balanced", "max_memory": memory}


def placement_of(devices: Sequence[str], spread: Spread) -> Placement:
    """What the row says of it."""
    return "one device" if len(devices) == 1 else spread


def keep_hooks_at_parts(model: Any) -> None:
    """Take away the hooks by which accelerate looks at the input of every layer within a part of a spread model.

    The parts of its device map have hooks of their own, which bring inputs to their device, and inside everything is
    there. In decoding the others cost more of the host's time than the layers' own dispatch leaves.
    """
    from accelerate.hooks import remove_hook_from_module

    for part in getattr(model, "hf_device_map", None) or {}:
        for inner in model.get_submodule(part).modules() if part else ():
            if inner is not model.get_submodule(part):
                remove_hook_from_module(inner)


def require_on_devices(model: Any, devices: Sequence[str]) -> None:
    """Raise `CellFailure` (oom) where parts of a model that was spread were left on the host or on disk."""
    places = getattr(model, "hf_device_map", None) or {}
    outside = sorted(name for name, place in places.items() if str(place) in ("cpu", "disk", "meta"))
    if len(devices) > 1 and outside:
        raise CellFailure("oom", f"{outside[0]} and what follows do not fit {len(devices)} GPUs beside the others")
