"""Put back together what gptqmodel takes apart.

gptqmodel splits the fused `gate_up_proj` of Phi-3's feed-forward before it quantizes, and saves the halves. The
architecture as Transformers knows it has no such layers: it would leave its own at random values, and only warn. Both
halves see the same input, so they have the same groups, and packing runs along the input: the fused layer's tensors
are the halves' side by side along the output.
"""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from effllm.errors import CellFailure
from effllm.runtime.artifact import write_text

# Fused layer -> its parts, in the order in which Transformers splits the output (Phi3MLP.forward).
FUSED_LAYERS = {"phi3": {"gate_up_proj": ("gate_proj", "up_proj")}}
# The axis of the output in each tensor of a packed layer: qweight [in / n, out], qzeros [groups, out / n],
# scales [groups, out]. Group indices [in] have none, and are the same in all parts.
_OUTPUT_AXIS = 1
_INDEX = "model.safetensors.index.json"


def fuse_layers(checkpoint: Path, model_type: str) -> None:
    """Rewrite the safetensors of a GPTQ checkpoint so that its layers are those of `model_type` in Transformers."""
    for fused, parts in FUSED_LAYERS.get(model_type, {}).items():
        _fuse(checkpoint, fused, parts)


def _fuse(checkpoint: Path, fused: str, parts: tuple[str, ...]) -> None:
    files = sorted(checkpoint.glob("*.safetensors"))
    home: dict[str, Path] = {}
    for path in files:
        with safe_open(path, framework="pt") as tensors:
            home |= dict.fromkeys(tensors.keys(), path)
    first, *others = parts
    where: dict[str, str] = {}
    for path in files:
        rewritten = {}
        for name in [name for name, file in home.items() if file == path]:
            layer, _, kind = name.rpartition(".")
            block, _, leaf = layer.rpartition(".")
            if leaf == first:
                pieces = [_read(home, f"{block}.{part}.{kind}") for part in parts]
                rewritten[f"{block}.{fused}.{kind}"] = _join(pieces, kind, f"{block}.{fused}")
            elif leaf not in others:
                rewritten[name] = _read(home, name)
        where |= dict.fromkeys(rewritten, path.name)
        # Beside the old file, which later files may still be read from.
        save_file(rewritten, path.with_suffix(".fused"), metadata={"format": "pt"})
    for path in files:
        path.with_suffix(".fused").replace(path)
    index = checkpoint / _INDEX
    if index.exists():
        content = json.loads(index.read_text()) | {"weight_map": where}
        write_text(index, json.dumps(content, indent=2, sort_keys=True) + "\n")


def _read(home: dict[str, Path], name: str) -> torch.Tensor:
    with safe_open(home[name], framework="pt") as tensors:
        return tensors.get_tensor(name)


def _join(pieces: list[torch.Tensor], kind: str, layer: str) -> torch.Tensor:
    if kind != "g_idx":
        return torch.cat(pieces, dim=_OUTPUT_AXIS)
    if not all(torch.equal(piece, pieces[0]) for piece in pieces):
        raise CellFailure("unsupported", f"the parts of {layer} were grouped differently and cannot be one layer")
    return pieces[0]
