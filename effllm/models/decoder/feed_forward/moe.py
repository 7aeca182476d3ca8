"""A mixture of SwiGLU experts (Fedus et al. 2021; Jiang et al. 2024)."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from effllm.fields import Dimension, Float, Section
from effllm.models.decoder.feed_forward.variant import FeedForward
from effllm.models.terms import Weights

if TYPE_CHECKING:
    from torch import nn

    from effllm.models.decoder.config import EffConfig


class MixtureKeys(Section):
    """Keys of the mixture."""

    num_experts: Dimension = Field(default=8, description="moe: number of experts.")
    num_experts_per_tok: Dimension = Field(default=2, description="moe: experts that a token is sent to.")
    moe_intermediate_size: Dimension | None = Field(
        default=None, description="moe: width of an expert; null takes intermediate_size."
    )
    router_aux_loss_coef: Annotated[Float, Field(ge=0)] = Field(
        default=0.01, description="moe: weight of the load-balancing loss."
    )


class Mixture(FeedForward):
    """A router sends each token to num_experts_per_tok of num_experts experts. The layer is in `moe_layer.py`."""

    keys = MixtureKeys
    keys_in_every_spec = True

    def fill_in(self, shape: Any) -> None:
        if shape.moe_intermediate_size is None:
            shape.moe_intermediate_size = shape.intermediate_size

    def check(self, shape: Any) -> None:
        if not 1 <= shape.num_experts_per_tok <= shape.num_experts:
            raise ValueError(
                f"num_experts_per_tok {shape.num_experts_per_tok} is not between 1 and num_experts "
                f"{shape.num_experts}: change one of them"
            )

    def build(self, config: "EffConfig") -> "nn.Module":
        from effllm.models.decoder.feed_forward.moe_layer import MixtureOfExperts

        return MixtureOfExperts(config)

    def cost(self, config: Any) -> Weights:
        hidden, chosen = config.hidden_size, config.num_experts_per_tok
        expert = 3 * hidden * config.moe_intermediate_size
        router = hidden * config.num_experts
        active = router + chosen * expert
        # Kept per chosen expert: its input, its four inner tensors, its output before the weighted sum.
        saved = chosen * (2 * hidden + 4 * config.moe_intermediate_size)
        return Weights(router + config.num_experts * expert, active, active, saved)

    def experts_per_token(self, shape: Mapping[str, Any]) -> int:
        return shape["num_experts_per_tok"]

    def transformers_keys(self, config: Any) -> dict[str, Any]:
        return {
            "moe_intermediate_size": config.moe_intermediate_size,
            "shared_expert_intermediate_size": 0,
            "num_experts": config.num_experts,
            "num_experts_per_tok": config.num_experts_per_tok,
            "norm_topk_prob": True,
            # Qwen2-MoE computes its balancing loss wherever the routers' logits are asked for, also in decoding, and
            # with a mask of the whole sequence for the one new token: who trains the model asks for them.
            "router_aux_loss_coef": config.router_aux_loss_coef,
            "output_router_logits": False,
        }

    def is_absent(self, name: str) -> bool:
        # Qwen2-MoE adds a shared expert to the routed ones; ours has no width, and its gate is then without effect.
        return ".shared_expert" in name
