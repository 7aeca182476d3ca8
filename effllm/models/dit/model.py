"""The diffusion transformer of Peebles and Xie (arXiv 2212.09748), from the paper's equations."""

import functools
import math
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from effllm.models.decoder.attention import ATTENTION
from effllm.models.decoder.attention.core import Sequence
from effllm.models.decoder.feed_forward import FEED_FORWARD
from effllm.models.decoder.feed_forward.moe_layer import load_balancing_loss
from effllm.models.dit.architecture import side
from effllm.models.dit.config import DiTConfig

# Sines and cosines of a timestep, and their longest period.
TIME_FEATURES, LONGEST_PERIOD = 256, 10_000.0


class Objective(Protocol):
    """What a model is trained towards: the noised images, and the loss of what it says of each."""

    def noised(self, images: Tensor, noise: Tensor, times: Tensor) -> Tensor: ...

    def model_time(self, times: Tensor) -> Tensor: ...

    def losses(self, output: Tensor, images: Tensor, noise: Tensor, times: Tensor) -> Tensor: ...


def sinusoids(values: Tensor, features: int) -> Tensor:
    """Values [..] to [.., features] in float32: cosines, then sines, of periods from 2 pi to 2 pi LONGEST_PERIOD."""
    half = features // 2
    exponent = torch.arange(half, device=values.device, dtype=torch.float32) / half
    angle = values[..., None].float() * LONGEST_PERIOD**-exponent
    return torch.cat((angle.cos(), angle.sin()), dim=-1)


def grid_positions(rows: int, width: int, device: torch.device) -> Tensor:
    """[rows * rows, width]: sinusoids of the column in the first half, of the row in the second."""
    encoded = sinusoids(torch.arange(rows, device=device), width // 2)
    by_column, by_row = encoded.expand(rows, -1, -1), encoded[:, None].expand(-1, rows, -1)
    return torch.cat((by_column, by_row), dim=-1).flatten(0, 1)


_kept_positions = functools.cache(grid_positions)


def _normalised(hidden: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """(1 + scale) LayerNorm(x) + shift, in the type of shift and scale, which is autocast's under autocast."""
    return torch.addcmul(shift, F.layer_norm(hidden, hidden.shape[-1:], eps=1e-6).to(shift.dtype), 1 + scale)


class DiTBlock(GradientCheckpointingLayer):
    """x + a1 Attention(s1 + (1 + g1) LN(x)), then x + a2 FeedForward(s2 + (1 + g2) LN(x)); (s, g, a) = W silu(c) + b.

    Norms have no parameters of their own, and W and b begin at zero, so that a block begins as the identity.
    """

    def __init__(self, config: DiTConfig, layer_idx: int):
        super().__init__()
        self.attn = ATTENTION[config.attention].build(config, layer_idx)
        self.mlp = FEED_FORWARD[config.feed_forward].build(config)
        self.modulation = nn.Linear(config.hidden_size, 6 * config.hidden_size)

    def forward(self, hidden: Tensor, condition: Tensor, sequence: Sequence) -> tuple[Tensor, Tensor | None]:
        """hidden [batch, T, d] under condition [batch, d], silu taken; and the router's logits if there is a router."""
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = self.modulation(condition)[:, None].chunk(6, dim=-1)
        hidden = hidden + gate_a * self.attn(_normalised(hidden, shift_a, scale_a), sequence, None)
        output = self.mlp(_normalised(hidden, shift_f, scale_f))
        update, router_logits = output if isinstance(output, tuple) else (output, None)
        return hidden + gate_f * update, router_logits


class DiT(PreTrainedModel):
    """Patches of noised images, a timestep and a label in; a prediction for every pixel and channel out.

    `config.classes` is the label of no label. With `learned_sigma` the output has twice the channels.
    """

    config: DiTConfig
    config_class = DiTConfig
    base_model_prefix = "dit"
    main_input_name = "images"
    supports_gradient_checkpointing = True
    _no_split_modules = ["DiTBlock"]  # noqa: RUF012  (as Transformers declares it)
    _supports_sdpa = True

    def __init__(self, config: DiTConfig):
        super().__init__(config)
        width, patch = config.hidden_size, config.patch_size**2
        self.output_channels = config.channels * (2 if config.learned_sigma else 1)
        self.patch_proj = nn.Linear(config.channels * patch, width)
        self.time_up_proj = nn.Linear(TIME_FEATURES, width)
        self.time_down_proj = nn.Linear(width, width)
        self.label_embedding = nn.Embedding(config.classes + 1, width)
        self.layers = nn.ModuleList([DiTBlock(config, index) for index in range(config.num_hidden_layers)])
        self.modulation = nn.Linear(width, 2 * width)
        self.output_proj = nn.Linear(width, self.output_channels * patch)
        self.gradient_checkpointing = False
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Xavier for products, small embeddings, zero for what modulates and for the output (section 3.2)."""
        is_zero = module is self.output_proj or module is self.modulation
        is_zero = is_zero or any(module is layer.modulation for layer in self.layers)
        if isinstance(module, nn.Linear):
            if is_zero:
                init.zeros_(module.weight)
            elif module in (self.time_up_proj, self.time_down_proj):
                init.normal_(module.weight, std=0.02)
            else:
                init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=0.02)
        elif (draw_parameters := getattr(module, "draw_parameters", None)) is not None:
            # Xavier's, of an expert's matrices.
            draw_parameters(math.sqrt(2 / (self.config.hidden_size + self.config.moe_intermediate_size)))

    def forward(
        self,
        images: Tensor,
        times: Tensor,
        labels: Tensor,
        noise: Tensor | None = None,
        objective: Objective | None = None,
    ) -> Tensor | dict[str, Tensor]:
        """The prediction [batch, output channels, size, size] for noised images [batch, channels, size, size].

        With `objective` the images are clean, `noise` is of their shape, and the result has the key `loss`: the mean
        over the batch, with experts plus router_aux_loss_coef times the load-balancing loss.
        """
        if objective is None:
            return self._predict(images, times, labels)[0]
        assert noise is not None
        noised = objective.noised(images, noise, times)
        output, router_logits = self._predict(noised, objective.model_time(times), labels)
        loss = objective.losses(output.float(), images, noise, times).mean()
        if router_logits:
            balance = load_balancing_loss(tuple(router_logits), self.config.num_experts_per_tok)
            loss = loss + self.config.router_aux_loss_coef * balance
        return {"loss": loss}

    def _predict(self, images: Tensor, times: Tensor, labels: Tensor) -> tuple[Tensor, list[Tensor]]:
        rows, patch = side(self.config), self.config.patch_size
        hidden = images.unflatten(3, (rows, patch)).unflatten(2, (rows, patch))
        hidden = self.patch_proj(hidden.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2))
        # A compiled graph computes them along with the rest; by themselves they are a dozen launches.
        positions = grid_positions if torch.compiler.is_compiling() else _kept_positions
        hidden = hidden + positions(rows, self.config.hidden_size, hidden.device)
        dtype = self.time_up_proj.weight.dtype
        hidden = hidden.to(dtype)
        condition = self.time_up_proj(sinusoids(times, TIME_FEATURES).to(dtype))
        condition = F.silu(self.time_down_proj(F.silu(condition)) + self.label_embedding(labels))
        index = torch.arange(rows**2, device=hidden.device)[None]
        sequence = Sequence(first_position=0, position_ids=index, causal=False)
        router_logits = []
        for layer in self.layers:
            hidden, logits = layer(hidden, condition, sequence)
            if logits is not None:
                router_logits.append(logits)
        shift, scale = self.modulation(condition)[:, None].chunk(2, dim=-1)
        output = self.output_proj(_normalised(hidden, shift, scale))
        output = output.unflatten(2, (patch, patch, self.output_channels)).unflatten(1, (rows, rows))
        return output.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3), router_logits


AutoModel.register(DiTConfig, DiT)
