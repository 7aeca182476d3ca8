"""Small decoders of every kind, with weights large enough that a wrong position or mask shows."""

import pytest
import torch

from effllm.models.decoder import EffConfig, EffForCausalLM

ATTENTIONS = ("mha", "gqa", "mqa", "mla", "nsa")
POSITIONS = ("rope", "sinusoidal", "learned", "relative", "none")


def small_config(**changes) -> EffConfig:
    """A two-layer decoder in which every length is small, so that 30 tokens reach every branch."""
    attention = changes.get("attention", "gqa")
    keys = {
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2 if attention in ("gqa", "nsa") else None,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,
        "pad_token_id": 0,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 4,
        "v_head_dim": 6,
        "relative_attention_max_distance": 8,
        "nsa_window": 6,
        "nsa_compression_block": 4,
        "nsa_compression_stride": 2,
        "nsa_selection_block": 4,
        "nsa_selected_blocks": 3,
        "nsa_local_blocks": 1,
        "num_experts": 4,
        "moe_intermediate_size": 24,
    }
    return EffConfig(**(keys | changes))


@pytest.fixture(autouse=True)
def one_thread():
    """Tensors this small are slower on several threads, and much slower on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def build():
    """Build a small decoder with fixed weights: `build(attention="mla", position="rope")`."""

    def make(**changes) -> EffForCausalLM:
        torch.manual_seed(0)
        return EffForCausalLM(small_config(**changes)).eval()

    return make


@pytest.fixture
def tokens() -> torch.Tensor:
    """[2, 33] tokens without padding."""
    return torch.randint(1, 97, (2, 33), generator=torch.Generator().manual_seed(1))
