"""SwiGLU layers, one or one for each expert, by quack's products for Hopper GPUs.

A step by plain torch reads and writes what is between the two products once more than they do: the activation and its
gradient are kernels of their own, and so are the cast of each weight's gradient to float32 and its addition to that of
the micro batches before. Here the products do it: the first one's end is the activation, that of its gradient too, and
the gradient of a weight is added up where it is. The bfloat16 copy of a weight serves all micro batches of a step.
"""

from collections.abc import Sequence
from typing import Any, ClassVar
from weakref import WeakSet, WeakValueDictionary

import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn import functional as F
from torch.optim.optimizer import register_optimizer_step_post_hook

from effllm.models.decoder.kernels.choice import failing_as_a_cell, has_package, is_hopper

_KERNEL = "quack of the feed-forward layer"


class Held:
    """What a layer keeps between the micro batches of a step: its weights' gradients, and bfloat16 copies of them.

    The kernels see tensors, in a compiled graph too, and find the layer by where these lie. A layer that they do not
    find, because its weights are others now, keeps nothing, and autograd adds up. A fused optimizer writes weights
    without a trace in their versions, so the steps of all optimizers are counted.
    """

    _known: ClassVar[WeakSet["Held"]] = WeakSet()
    _by_place: ClassVar[WeakValueDictionary[int, "Held"]] = WeakValueDictionary()
    _steps: ClassVar[int | None] = None

    def __init__(self, gate_up: Sequence[Tensor], down: Tensor):
        self.gate_up, self.down = list(gate_up), [down]
        self._key: tuple[int, ...] = ()
        self._copies: tuple[Tensor, Tensor] | None = None
        if Held._steps is None:
            Held._steps = 0
            register_optimizer_step_post_hook(Held._count)
        Held._known.add(self)

    @staticmethod
    def _count(*_: object) -> None:
        Held._steps = (Held._steps or 0) + 1

    @classmethod
    def of(cls, gate_up: Sequence[Tensor], down: Tensor) -> "Held | None":
        """The layer that has these weights."""
        place = gate_up[0].data_ptr()
        held = cls._by_place.get(place)
        if held is None or not held._has(gate_up, down):
            cls._by_place = WeakValueDictionary({each.gate_up[0].data_ptr(): each for each in cls._known})
            held = cls._by_place.get(place)
        return held if held is not None and held._has(gate_up, down) else None

    def _has(self, gate_up: Sequence[Tensor], down: Tensor) -> bool:
        ours, theirs = [*self.gate_up, *self.down], [*gate_up, down]
        pairs = zip(ours, theirs, strict=False)
        return len(ours) == len(theirs) and all(a.data_ptr() == b.data_ptr() and a.shape == b.shape for a, b in pairs)

    def copies(self) -> tuple[Tensor, Tensor]:
        """As `copies` makes them, once for each step."""
        key = (Held._steps or 0, *(weight._version for weight in (*self.gate_up, *self.down)))
        if key != self._key or self._copies is None:
            self._copies = None
            self._copies, self._key = copies(self.gate_up, self.down[0]), key
        return self._copies


def copies(gate_up: Sequence[Tensor], down: Tensor) -> tuple[Tensor, Tensor]:
    """In bfloat16: gate and up with their rows in turn, of the two weights or of one with gate above up; and down."""
    gate, up = gate_up if len(gate_up) == 2 else gate_up[0].chunk(2, dim=-2)
    both = gate.new_empty((*gate.shape[:-1], 2, gate.shape[-1]), dtype=torch.bfloat16)
    both[..., 0, :].copy_(gate.detach())
    both[..., 1, :].copy_(up.detach())
    return both.flatten(-3, -2), down.detach().bfloat16()


def objection_to_fused(x: Tensor, weights: Sequence[Tensor]) -> str | None:
    """What speaks against `fused_swiglu` for x [.., hidden]; None where it can."""
    if x.device.type != "cuda":
        return f"it needs CUDA, not {x.device.type}"
    if not torch.is_grad_enabled():
        return "nothing is trained"
    if not torch.is_autocast_enabled("cuda") or torch.get_autocast_dtype("cuda") != torch.bfloat16:
        return "it is for bfloat16 products of float32 weights"
    # A parametrized weight is none of these: it is no leaf, which gradients could be added up in.
    if any(weight.dtype != torch.float32 or not (weight.requires_grad and weight.is_leaf) for weight in weights):
        return "it is for bfloat16 products of float32 weights, all of them trained"
    if any(size % 16 for weight in weights for size in weight.shape[-2:]):
        return "it takes widths that are multiples of 16"
    return _absence()


@torch.compiler.assume_constant_result
def _absence() -> str | None:
    if not is_hopper():
        return "it is for Hopper GPUs"
    if dist.is_available() and dist.is_initialized():
        return "gradients are shared between processes"
    return None if has_package("quack.gemm_interface") else "quack-kernels cannot be imported"


def fused_swiglu(x: Tensor, gate_up: Sequence[Tensor], down: Tensor, ends: Tensor | None = None) -> Tensor:
    """x [rows, hidden] by W_down (silu(W_gate x) * W_up x), in bfloat16: [rows, hidden].

    `gate_up` is the two weights or both as one, [2 * width, hidden]. With `ends` [groups], int32, each weight has one
    for each group before its other dimensions, and x has the rows of a group up to its end. The gradients of weights
    that a layer holds are added up in `weight.grad`: not for `torch.autograd.grad`, which would lose those of before.
    """
    return torch.ops.effllm.swiglu(x.to(torch.bfloat16), ends, list(gate_up), down)[0]


@torch.library.custom_op(
    "effllm::swiglu",
    mutates_args=(),
    schema="(Tensor x, Tensor? ends, Tensor[] gate_up, Tensor down) -> (Tensor, Tensor)",
)
@failing_as_a_cell(_KERNEL)
def _forward(x: Tensor, ends: Tensor | None, gate_up: list[Tensor], down: Tensor) -> tuple[Tensor, Tensor]:
    """The layer's output, and what its first product gave, columns of gate and up in turn."""
    from quack.gemm_interface import gemm_gated

    held = Held.of(gate_up, down)
    wide, narrow = copies(gate_up, down) if held is None else held.copies()
    states, inner = gemm_gated(x, wide.mT, activation="swiglu", cu_seqlens_m=_bounds(ends), tuned=False)
    return _product(inner, narrow.mT, ends), states


@_forward.register_fake
def _(x: Tensor, ends: Tensor | None, gate_up: list[Tensor], down: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty((x.shape[0], 2 * down.shape[-1]))


@torch.library.custom_op(
    "effllm::swiglu_backward",
    mutates_args=(),
    schema="(Tensor upstream, Tensor x, Tensor? ends, Tensor states, Tensor[] gate_up, Tensor down)"
    " -> (Tensor, Tensor, Tensor)",
)
@failing_as_a_cell(_KERNEL)
def _backward(
    upstream: Tensor, x: Tensor, ends: Tensor | None, states: Tensor, gate_up: list[Tensor], down: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, of gate above up, and of down; the latter two with what the layer holds."""
    from quack.gemm_interface import gemm_dgated

    held = Held.of(gate_up, down)
    wide, narrow = copies(gate_up, down) if held is None else held.copies()
    bounds = _bounds(ends)
    gradient, inner = gemm_dgated(upstream, narrow, states, activation="swiglu", cu_seqlens_m=bounds, tuned=False)
    of_down = _weight_gradient(upstream, inner, [] if held is None else held.down, bounds, take_turns=False)
    of_gate_up = _weight_gradient(gradient, x, [] if held is None else held.gate_up, bounds, take_turns=True)
    return _product(gradient, wide, ends), of_gate_up, of_down


@_backward.register_fake
def _(
    upstream: Tensor, x: Tensor, ends: Tensor | None, states: Tensor, gate_up: list[Tensor], down: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    rows = sum(weight.shape[-2] for weight in gate_up)
    both = down.new_empty((*down.shape[:-2], rows, down.shape[-2]))
    return x.new_empty(x.shape), both, down.new_empty(down.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, ends, gate_up, down = inputs
    ctx.save_for_backward(x, ends, output[1], down, *gate_up)
    ctx.set_materialize_grads(False)


def _back(ctx: Any, upstream: Tensor, _: Tensor | None) -> tuple[Tensor, None, list[Tensor], Tensor]:
    x, ends, states, down, *gate_up = ctx.saved_tensors
    back, of_gate_up, of_down = _backward(upstream.contiguous(), x, ends, states, gate_up, down)
    return back, None, list(of_gate_up.split([weight.shape[-2] for weight in gate_up], dim=-2)), of_down


_forward.register_autograd(_back, setup_context=_keep)


def _bounds(ends: Tensor | None) -> Tensor | None:
    return None if ends is None else F.pad(ends, (1, 0))


def _product(x: Tensor, weight: Tensor, ends: Tensor | None) -> Tensor:
    return x @ weight if ends is None else F.grouped_mm(x, weight, offs=ends)


def _weight_gradient(
    upstream: Tensor, x: Tensor, weights: list[Tensor], bounds: Tensor | None, take_turns: bool
) -> Tensor:
    """upstream^T x by group in float32, and what `weights`, one below the other, have as gradients already.

    That is taken from them and added to, so that autograd has nothing to add.
    """
    total = _held(weights)
    is_first = total is None
    if total is None:
        groups = () if bounds is None else (len(bounds) - 1,)
        total = upstream.new_empty((*groups, upstream.shape[1], x.shape[1]), dtype=torch.float32)
    if take_turns or bounds is not None:
        _add_product(upstream.mT, x, total, bounds, take_turns, is_first)
    elif is_first:
        torch.mm(upstream.mT, x, out_dtype=torch.float32, out=total)
    else:
        torch.addmm(total, upstream.mT, x, out_dtype=torch.float32, out=total)
    if not is_first:
        for weight in weights:
            weight.grad = None
    return total


_plans: dict[tuple[Any, ...], Any] = {}


def _add_product(a: Tensor, b: Tensor, total: Tensor, bounds: Tensor | None, take_turns: bool, is_first: bool) -> None:
    """total = a b, or += where it is not the first; with `take_turns` gate above up, whose columns take turns in a.

    quack's `gemm` and `gemm_add_inplace` without what they do on the way at each call, a tenth of a millisecond of the
    host.
    """
    from quack.gemm_interface import RoundingMode, SplitKMode, _gemm_execute, default_config

    key = (a.shape, a.stride(), b.shape, b.stride(), total.shape, bounds is None, take_turns, is_first)
    layout = None if not take_turns else ("out",) if is_first else ("C", "out")
    _plans[key] = _gemm_execute(
        a, b, total, None, bias=None, alpha=1.0, beta=1.0, cu_seqlens_m=None, cu_seqlens_k=bounds, A_idx=None,
        batch_idx_permute=None, add_to_output=not is_first, dynamic_scheduler=True, config=default_config(a.device),
        rounding_mode=RoundingMode.RN, sr_seed=0, concat_layout=layout, SFA=None, SFB=None, split_k=1,
        split_k_mode=SplitKMode.SERIAL, dispatch_plan=_plans.get(key),
    )  # fmt: skip


def _held(weights: list[Tensor]) -> Tensor | None:
    """The gradients of `weights` as one tensor, if they lie one below the other in memory, as they are made here."""
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    if len(gradients) < max(1, len(weights)):
        return None
    if any(each.dtype != torch.float32 or not each.is_contiguous() for each in gradients):
        return None
    first, *others = gradients
    if not others:
        return first
    end, rows = first.data_ptr() + 4 * first.numel(), first.shape[0]
    for other in others:
        if other.untyped_storage().data_ptr() != first.untyped_storage().data_ptr() or other.data_ptr() != end:
            return None
        end, rows = end + 4 * other.numel(), rows + other.shape[0]
    return first.as_strided((rows, first.shape[1]), first.stride())
