"""Which kernel serves a module: the fused one where it can, the way of plain torch where it cannot, and a record of it.

A module has two ways. What the caller asked for in `choosing` decides, and otherwise whether anything speaks against
the fused way: the device, the data type, a cache, a shape. A fused way that was asked for by name and cannot run fails
the cell, and so does one that breaks while it runs: nothing falls back unsaid.
"""

import functools
import importlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from effllm.errors import CellFailure, first_line, reason_of

AUTO = "auto"


@dataclass(frozen=True)
class Ways:
    """A module's two ways by name: the fused kernel, and plain torch."""

    fused: str
    plain: str


WAYS = {
    "attention": Ways("flash_attn_4", "sdpa"),
    "feed_forward": Ways("quack", "torch"),
    "loss": Ways("triton_loss", "torch_loss"),
    "relative": Ways("near_far", "chunked"),
    "nsa": Ways("blocks", "gather"),
    "mamba": Ways("mamba_ssm", "mambapy"),
    "mamba2": Ways("mamba_ssm", "torch"),
    "rwkv": Ways("fla", "loop"),
}


class _State:
    """What was asked for, and what was used: by module the kernels, each with what spoke against the fused one."""

    def __init__(self, wanted: Mapping[str, str]):
        self.wanted = dict(wanted)
        self.used: dict[str, dict[str, str | None]] = {}


_state = _State({})


@contextmanager
def choosing(wanted: Mapping[str, str]) -> Iterator[dict[str, dict[str, str | None]]]:
    """Choose as `wanted` says, by module "auto" or the name of a way, and give the record of what was used.

    The record is {module: {kernel: reason}}, the reason what spoke against the fused kernel; None where it was used, or
    where the plain one was asked for. Raises ValueError for a module or name that does not exist.
    """
    for module, name in wanted.items():
        ways = WAYS.get(module)
        if ways is None or name not in (AUTO, ways.fused, ways.plain):
            raise ValueError(f"no kernel {name!r} of {module!r}: {WAYS}")
    global _state
    before, _state = _state, _State(wanted)
    try:
        yield _state.used
    finally:
        _state = before


@torch.compiler.assume_constant_result
def is_named(module: str) -> bool:
    """Whether the caller asked for one of the module's ways by name."""
    return _state.wanted.get(module, AUTO) != AUTO


@torch.compiler.assume_constant_result
def is_fused(module: str, objection: str | None) -> bool:
    """Whether the module goes its fused way; `objection` says why it cannot.

    Under torch.compile this runs once, while the graph is made. Raises CellFailure where the fused way was asked for.
    """
    ways, wanted = WAYS[module], _state.wanted.get(module, AUTO)
    used = _state.used.setdefault(module, {})
    if wanted == ways.plain:
        used[ways.plain] = None
        return False
    if objection is None:
        used[ways.fused] = None
        return True
    if wanted == ways.fused:
        raise CellFailure("unsupported", f"the kernel {wanted} of {module} was asked for and cannot run: {objection}")
    if ways.plain not in used and torch.cuda.is_available():
        warnings.warn(f"{module} runs by {ways.plain}, not {ways.fused}: {objection}", RuntimeWarning, stacklevel=2)
    used.setdefault(ways.plain, objection)
    return False


def objection_to(query: Tensor, needs: int) -> str | None:
    """What speaks against Triton's kernels for queries [.., D]; D is to be a multiple of `needs`."""
    if query.device.type != "cuda":
        return f"it needs CUDA, not {query.device.type}"
    if query.dtype not in (torch.bfloat16, torch.float16):
        return f"it is for 16-bit numbers, not {str(query.dtype).removeprefix('torch.')}"
    if query.shape[-1] % needs or query.shape[-1] > 256:
        return f"it takes head dimensions that are multiples of {needs} up to 256, not {query.shape[-1]}"
    return absence_of_triton()


@torch.compiler.assume_constant_result
def absence_of_triton() -> str | None:
    """Why triton cannot be imported, as a constant of a compiled graph; None where it can."""
    return absence_of("triton", "triton")


@functools.cache
def absence_of(module: str, package: str) -> str | None:
    """Why a module of a package of kernels cannot be imported, None where it can; not to be asked without CUDA."""
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name == module.partition(".")[0]:
            return f"{package} is not installed"
        return _broken(package, error)
    # A package that does not fit torch, Triton or the driver fails at its import in any way; Transformers takes its own
    # functions then.
    except Exception as error:
        return _broken(package, error)
    return None


def _broken(package: str, error: Exception) -> str:
    return f"{package} cannot be imported ({type(error).__name__}: {reason_of(error)})"


@functools.cache
def is_hopper() -> bool:
    """Whether the current GPU is an H100, H200 or another of compute capability 9; not to be asked without CUDA."""
    return torch.cuda.get_device_capability()[0] == 9


def failing_as_a_cell(kernel: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate what launches a kernel: an error in it, but lack of memory, fails the cell."""

    def decorate(launch: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(launch)
        def launched(*arguments: Any, **keywords: Any) -> Any:
            try:
                return launch(*arguments, **keywords)
            except (torch.OutOfMemoryError, CellFailure):
                raise
            except Exception as error:
                raise CellFailure("unsupported", f"the kernel {kernel} failed: {first_line(error)}") from error

        return launched

    return decorate
