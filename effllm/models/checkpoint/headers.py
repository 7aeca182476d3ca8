"""Headers of safetensors files, read without PyTorch.

Format (docs of safetensors): eight bytes with the header's length, little endian; the header, JSON with dtype, shape
and data_offsets of every tensor; the data, without gaps.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from effllm.errors import UserError
from effllm.models.checkpoint.files import unreadable

BITS = {
    **{"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "C64": 64},
    **{"I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8},
    **{"F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8},
    **{"F6_E2M3": 6, "F6_E3M2": 6, "F4": 4},
}
"""Bits per element of each type."""
_POINTER = b"version https://git-lfs"
# The library's own limit.
_LONGEST_HEADER = 100_000_000


@dataclass(frozen=True)
class TensorHeader:
    """Type (a key of `BITS`) and shape of a tensor, and the file that holds it."""

    dtype: str
    shape: tuple[int, ...]
    file: str

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """What they take on disk."""
        return self.elements * BITS[self.dtype] // 8


def read_headers(directory: Path, names: list[str], where: str) -> dict[str, TensorHeader]:
    """The tensors of these files by name; `UserError`, beginning with `where`, for a file that is not whole."""
    found: dict[str, TensorHeader] = {}
    for name in names:
        tensors = _read(directory / name, where)
        if twice := sorted(tensors.keys() & found.keys()):
            raise UserError(f"{where}: {name} and {found[twice[0]].file} both hold {twice[0]}; save the model anew.")
        found |= tensors
    return found


def _read(path: Path, where: str) -> dict[str, TensorHeader]:
    try:
        size = path.stat().st_size
        with open(path, "rb") as stream:
            start = stream.read(8)
            if (start + stream.read(len(_POINTER) - 8)).startswith(_POINTER):
                raise UserError(
                    f"{where}: {path.name} is a git-lfs pointer and not the weights; run git lfs pull there."
                )
            length = int.from_bytes(start, "little")
            if size == 0:
                raise UserError(f"{where}: {path.name} is empty; fetch or save it again.")
            if size < 8 or not 2 <= length <= min(_LONGEST_HEADER, size - 8):
                raise _damaged(path, where, "its first bytes are no length of a header")
            stream.seek(8)
            header = json.loads(stream.read(length))
    except OSError as error:
        raise unreadable(where, path.name, error) from None
    except (ValueError, RecursionError):
        raise _damaged(path, where, "its header is not JSON") from None
    if not isinstance(header, dict):
        raise _damaged(path, where, "its header is no JSON object")
    header.pop("__metadata__", None)
    tensors: dict[str, TensorHeader] = {}
    spans = []
    for name, entry in header.items():
        tensor, span = _tensor(path, where, name, entry)
        tensors[name] = tensor
        spans.append(span)
    end = 0
    for first, last in sorted(spans):
        if first != end:
            raise _damaged(path, where, "its tensors overlap or leave gaps")
        end = last
    if size != 8 + length + end:
        raise _damaged(path, where, f"it has {size:,} bytes and its header asks for {8 + length + end:,}")
    return tensors


def _tensor(path: Path, where: str, name: str, entry: Any) -> tuple[TensorHeader, tuple[int, int]]:
    try:
        dtype, shape, (first, last) = entry["dtype"], entry["shape"], entry["data_offsets"]
        numbers = [*shape, first, last]
        if not all(type(number) is int and number >= 0 for number in numbers):
            raise ValueError
    except (TypeError, KeyError, ValueError):
        raise _damaged(path, where, f"its header does not say where {name[:80]!r} lies") from None
    if dtype not in BITS:
        raise UserError(
            f"{where}: {path.name} holds {name[:80]!r} as {str(dtype)[:20]!r}, a type not known here; convert it."
        )
    tensor = TensorHeader(dtype, tuple(shape), path.name)
    if last - first != tensor.bytes:
        raise _damaged(path, where, f"the size of {name[:80]!r} does not fit its shape")
    return tensor, (first, last)


def _damaged(path: Path, where: str, why: str) -> UserError:
    return UserError(f"{where}: {path.name} is not a whole safetensors file ({why}); fetch or save it again.")
