"""The mixture-of-experts feed-forward layer and its load-balancing loss."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from effllm.models.decoder.kernels.choice import is_fused, is_named
from effllm.models.decoder.kernels.swiglu import Copies, fused_swiglu, objection_to_fused

if TYPE_CHECKING:
    from effllm.models.decoder.config import EffConfig


# Rows of the grouped kernel for bfloat16 begin at multiples of 16 bytes.
_GROUPED_WIDTH = 8


class Experts(nn.Module):
    """SwiGLU experts as two stacked tensors, [experts, 2 * width, hidden] (gate over up) and [experts, hidden, width].

    One tensor per projection, not one module per expert: 8 x 1.5B is sharded along the experts or along the width, and
    a single grouped product serves all of them.
    """

    def __init__(self, config: "EffConfig"):
        super().__init__()
        width = config.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(config.num_experts, 2 * width, config.hidden_size))
        self.down_proj = nn.Parameter(torch.empty(config.num_experts, config.hidden_size, width))
        self._copies = Copies()

    def draw_parameters(self, std: float) -> None:
        """Draw the experts' matrices."""
        init.normal_(self.gate_up_proj, mean=0.0, std=std)
        init.normal_(self.down_proj, mean=0.0, std=std)

    def forward(self, x: Tensor, tokens_per_expert: Tensor) -> Tensor:
        """x [rows, hidden], sorted by expert, and how many rows each expert has; the same shape out."""
        weights = (self.gate_up_proj, self.down_proj)
        # Where there is nothing to choose from, nothing is recorded.
        has_choice = (x.device.type == "cuda" and torch.is_grad_enabled()) or is_named("feed_forward")
        if has_choice and is_fused("feed_forward", objection_to_fused(x, weights)):
            return fused_swiglu(x, weights[:1], weights[1:], self._copies, tokens_per_expert)
        gate, up = _grouped_linear(x, self.gate_up_proj, tokens_per_expert).chunk(2, dim=-1)
        return _grouped_linear(F.silu(gate) * up, self.down_proj, tokens_per_expert)


class MixtureOfExperts(nn.Module):
    """y = sum over the top k experts e of w_e SwiGLU_e(x), w = p / sum of the chosen p, p = softmax(W_r x).

    Routing of Mixtral (Jiang et al. 2024, section 2.1; softmax in float32, renormalised over the chosen) on experts of
    Fedus et al. 2021. No token is dropped and no expert has a capacity. The (token, expert) pairs are sorted by expert
    and every expert sees its rows in one product.
    """

    def __init__(self, config: "EffConfig"):
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.num_experts = config.num_experts
        self.gate = nn.Linear(config.hidden_size, config.num_experts, bias=False)
        self.experts = Experts(config)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """[batch, length, hidden] to the same shape, and the router's logits [batch * length, experts]."""
        x = hidden.reshape(-1, hidden.shape[-1])
        logits = self.gate(x)
        weights, chosen = logits.float().softmax(dim=-1).topk(self.top_k, dim=-1)
        weights = (weights / weights.sum(dim=-1, keepdim=True)).to(x.dtype)
        order = chosen.flatten().argsort(stable=True)
        tokens_per_expert = F.one_hot(chosen, self.num_experts).sum(dim=(0, 1))
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(order.numel(), device=order.device)
        outputs = self.experts(_Dispatch.apply(x, order, inverse, self.top_k), tokens_per_expert)
        outputs = _Permute.apply(outputs, inverse, order).view(*chosen.shape, -1)
        mixed = (outputs * weights[..., None].to(outputs.dtype)).sum(dim=1)
        return mixed.view(hidden.shape).to(hidden.dtype), logits


class _Permute(torch.autograd.Function):
    """x [rows, d] at `order`, a permutation, of which `inverse` is the other way.

    The gradient is fetched from where it is, and not added, as that of index_select, to rows of zeros.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return x.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return gradient.index_select(0, inverse), None, None


class _Dispatch(torch.autograd.Function):
    """x [tokens, d], every token `top_k` times, in the order of its experts; its gradients are fetched and added up."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor, top_k: int) -> Tensor:
        ctx.save_for_backward(inverse)
        ctx.top_k = top_k
        return x.index_select(0, order // top_k)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (inverse,) = ctx.saved_tensors
        return gradient.index_select(0, inverse).unflatten(0, (-1, ctx.top_k)).sum(dim=1), None, None, None


def _grouped_linear(x: Tensor, weight: Tensor, rows_per_group: Tensor) -> Tensor:
    """x [rows, in], sorted by group, times each group's weight [groups, out, in]: [rows, out]."""
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(dtype), weight.to(dtype)
    if x.dtype == torch.bfloat16 and not any(width % _GROUPED_WIDTH for width in weight.shape[1:]):
        ends = rows_per_group.cumsum(0).to(torch.int32)
        return F.grouped_mm(x, weight.transpose(1, 2), offs=ends)
    # In other types, and of rows that the grouped kernel cannot read, the experts take turns.
    parts = x.split(rows_per_group.tolist())
    return torch.cat([F.linear(part, matrix) for part, matrix in zip(parts, weight.unbind(0), strict=True)])


def load_balancing_loss(router_logits: tuple[Tensor, ...], top_k: int, token_mask: Tensor | None = None) -> Tensor:
    """E * sum over experts of f_e P_e (Fedus et al. 2021, eq. 4 to 6), as Mixtral and Qwen2-MoE compute it.

    f_e is the number of choices of expert e per token (it sums to k), P_e its mean probability, both over the tokens of
    all layers together. It is k for a router that balances perfectly. `router_logits` are one [tokens, experts] per
    layer; `token_mask` [batch, length] leaves padding out.
    """
    logits = torch.stack(router_logits)
    probabilities = logits.float().softmax(dim=-1)
    chosen = logits.topk(top_k, dim=-1).indices
    experts = logits.shape[-1]
    mask = torch.ones_like(logits[0, :, 0]) if token_mask is None else token_mask.flatten()
    mask = mask.to(device=logits.device, dtype=torch.float32)
    choices = F.one_hot(chosen, experts).sum(dim=-2).float()
    tokens = mask.sum() * logits.shape[0]
    frequency = (choices * mask[:, None]).sum(dim=(0, 1)) / tokens
    probability = (probabilities * mask[:, None]).sum(dim=(0, 1)) / tokens
    return experts * (frequency * probability).sum()
