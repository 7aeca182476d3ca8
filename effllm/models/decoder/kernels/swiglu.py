"""SwiGLU layers, one or one for each expert, by quack's products for Hopper GPUs.

A step by plain torch reads and writes what is between the two products once more than they do: the activation and its
gradient are kernels of their own, and so are the cast of each weight's gradient to float32 and its addition to that of
the micro batches before. Here the products do it: the first one's end is the activation, that of its gradient too, and
the gradient of a weight is added up where it is. The bfloat16 copy of a weight serves all micro batches of a step.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn import functional as F
from torch.optim.optimizer import register_optimizer_step_post_hook

from effllm.models.decoder.kernels.choice import absence_of, failing_as_a_cell, is_hopper, is_named

# Rows x hidden x width. On an H100 a step at 2.3e11 gained 4 %; at 7e10 one lost 9 %, though its kernels gained 10 %.
_LEAST_WORK = 1e11
Weights = tuple[Tensor, ...]


class Copies:
    """bfloat16 copies of float32 weights, kept for the micro batches of a step.

    A fused optimizer writes weights without a trace in their versions, so the steps of all optimizers are counted.
    """

    _steps: ClassVar[int | None] = None

    def __init__(self) -> None:
        self._key: tuple[Any, ...] = ()
        self._copies: list[Tensor] = []

    def of(self, gate_up: Weights, down: Weights) -> list[Tensor]:
        """One of gate and up, whose rows take turns, and one of down."""
        if Copies._steps is None:
            Copies._steps = 0
            register_optimizer_step_post_hook(Copies._count)
        key = (Copies._steps, *((weight.data_ptr(), weight._version) for weight in (*gate_up, *down)))
        if key != self._key:
            self._copies = []
            self._copies = [_interleaved(gate_up), *(weight.detach().bfloat16() for weight in down)]
            self._key = key
        return self._copies

    @staticmethod
    def _count(*_: object) -> None:
        assert Copies._steps is not None
        Copies._steps += 1


def objection_to_fused(x: Tensor, weights: Weights) -> str | None:
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
    # A weight's last two dimensions are those of one expert's, whose rows together are those of x.
    if not is_named("feed_forward") and x.numel() * max(weight.shape[-1] for weight in weights) < _LEAST_WORK:
        return "its products are so short that the host, which it keeps busier, would not keep up"
    return _absence()


@torch.compiler.assume_constant_result
def _absence() -> str | None:
    if not is_hopper():
        return "it is for Hopper GPUs"
    if dist.is_available() and dist.is_initialized():
        return "gradients are shared between processes"
    return absence_of("quack.gemm_interface", "quack-kernels")


@torch.compiler.disable
@failing_as_a_cell("quack of the feed-forward layer")
def fused_swiglu(x: Tensor, gate_up: Weights, down: Weights, copies: Copies, rows: Tensor | None = None) -> Tensor:
    """x [.., hidden] by W_down (silu(W_gate x) * W_up x), in bfloat16: [.., hidden].

    `gate_up` is the two weights or both as one, [2 * width, hidden]. With `rows` [groups], each weight has one for each
    group before its other dimensions, and so many rows of x are a group's, one behind the other. Not for a compiled
    graph: gradients are added up in `weight.grad`, of which a graph knows nothing; nor for `torch.autograd.grad`, which
    would lose what was added up before. What little is done around the products is done here, since a compiled graph of
    two operators costs the host more than they do.
    """
    wide, narrow = copies.of(gate_up, down)
    ends = None if rows is None else rows.cumsum(0).to(torch.int32)
    bounds = None if ends is None else F.pad(ends, (1, 0))
    flat = x.reshape(-1, x.shape[-1]).to(torch.bfloat16)
    return _SwiGLU.apply(flat, ends, bounds, wide, narrow, len(gate_up), *gate_up, *down).view(x.shape)


class _SwiGLU(torch.autograd.Function):
    """quack's products where they end in something else, the library's elsewhere."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        ends: Tensor | None,
        bounds: Tensor | None,
        wide: Tensor,
        narrow: Tensor,
        parts: int,
        *weights: Tensor,
    ) -> Tensor:
        from quack.gemm_interface import gemm_gated

        # Columns of gate and up take turns in `states`, and in its gradient.
        states, inner = gemm_gated(x, wide.mT, activation="swiglu", cu_seqlens_m=bounds, tuned=False)
        ctx.save_for_backward(x, ends, bounds, states, wide, narrow)
        ctx.gate_up, ctx.down = weights[:parts], weights[parts:]
        return _product(inner, narrow.mT, ends)

    @staticmethod
    @failing_as_a_cell("quack of the feed-forward layer")
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        from quack.gemm_interface import gemm_dgated

        x, ends, bounds, states, wide, narrow = ctx.saved_tensors
        upstream = upstream.contiguous()
        gradient, inner = gemm_dgated(upstream, narrow, states, activation="swiglu", cu_seqlens_m=bounds, tuned=False)
        down = _weight_gradients(upstream, inner, ctx.down, bounds, take_turns=False)
        gate_up = _weight_gradients(gradient, x, ctx.gate_up, bounds, take_turns=True)
        return _product(gradient, wide, ends), None, None, None, None, None, *gate_up, *down


def _interleaved(weights: Weights) -> Tensor:
    """Rows of gate and up in turn, in bfloat16, of the two weights or of one with gate above up."""
    gate, up = weights if len(weights) == 2 else weights[0].chunk(2, dim=-2)
    both = gate.new_empty((*gate.shape[:-1], 2, gate.shape[-1]), dtype=torch.bfloat16)
    with torch.no_grad():
        both[..., 0, :].copy_(gate)
        both[..., 1, :].copy_(up)
    return both.flatten(-3, -2)


def _product(x: Tensor, weight: Tensor, ends: Tensor | None) -> Tensor:
    return x @ weight if ends is None else F.grouped_mm(x, weight, offs=ends)


def _weight_gradients(
    upstream: Tensor, x: Tensor, weights: Weights, bounds: Tensor | None, take_turns: bool
) -> tuple[Tensor, ...]:
    """What `weights`, one below the other, have as gradients with upstream^T x, by group; float32.

    What they have already is taken from them and added to, so that autograd has nothing to add.
    """
    total = _held(weights)
    is_first = total is None
    if total is None:
        shape = (*weights[0].shape[:-2], sum(weight.shape[-2] for weight in weights), weights[0].shape[-1])
        total = upstream.new_empty(shape, dtype=torch.float32)
    if take_turns or bounds is not None:
        _add_product(upstream.mT, x, total, bounds, take_turns, is_first)
    elif is_first:
        torch.mm(upstream.mT, x, out_dtype=torch.float32, out=total)
    else:
        torch.addmm(total, upstream.mT, x, out_dtype=torch.float32, out=total)
    if not is_first:
        for weight in weights:
            weight.grad = None
    return total.split([weight.shape[-2] for weight in weights], dim=-2)


_plans: dict[tuple[Any, ...], Any] = {}


def _add_product(a: Tensor, b: Tensor, total: Tensor, bounds: Tensor | None, take_turns: bool, is_first: bool) -> None:
    """total = a b, or += where it is not the first; with `take_turns` gate above up, whose columns take turns in a.

    This is quack's `gemm` and `gemm_add_inplace` without what they do on the way at each call, a tenth of a millisecond
    of the host.
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


def _held(weights: Weights) -> Tensor | None:
    """The gradients of `weights` as one tensor, if they lie one below the other in memory, as they are made here."""
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    if len(gradients) < len(weights):
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
