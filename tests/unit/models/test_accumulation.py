"""Gradients in bfloat16 whose summands are many: against the same attention in double precision."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from effllm.models.decoder.attention import core, nsa_layer
from effllm.models.decoder.attention.core import GroupedQueryAttention, Sequence
from effllm.models.decoder.attention.nsa_layer import NativeSparseAttention

from .conftest import small_config

LENGTH = 1024
# bfloat16 keeps 8 bits: rounding operands and results leaves 2e-3 to 4e-3. Adding up in it left 1.6e-2 and more.
BOUND = 6e-3


def states(heads: int, seed: int, common: float) -> torch.Tensor:
    """[1, heads, LENGTH, 16], exact in bfloat16, with a part that all tokens have in common.

    Queries and gradients with such a part add up in the gradients of keys and values instead of cancelling out.
    """
    draw = torch.randn(1, heads, LENGTH, 16, generator=torch.Generator().manual_seed(seed))
    return (draw * 0.3 + draw[:, :, :1] * common).bfloat16()


def relative_error(value: torch.Tensor, reference: torch.Tensor) -> float:
    return ((value.double() - reference).norm() / reference.norm()).item()


def gradients(attend, dtype: torch.dtype) -> list[torch.Tensor]:
    inputs = [states(*shape).to(dtype).requires_grad_() for shape in ((4, 0, 1.0), (2, 1, 0.0), (2, 2, 0.0))]
    return torch.autograd.grad(attend(*inputs), inputs, states(4, 3, 1.0).to(dtype))


def selected(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """The selection branch alone, by gates; every query reads the first block and its own two, whatever the scores."""
    config = small_config(attention="nsa", head_dim=16, nsa_selected_blocks=2, nsa_selection_block=16)
    layer = NativeSparseAttention(config, 0)
    none = query.new_zeros(1, 2, (LENGTH - 4) // 2 + 1, 16)
    past = nsa_layer.branches.KVContext(none, none, key, value, torch.zeros(1, dtype=torch.long))
    gates = torch.tensor([0.0, 1.0, 0.0], dtype=query.dtype).expand(1, 4, LENGTH, 3)
    return layer._attend(query, gates, past, torch.zeros_like(key), torch.zeros_like(value), 0)


def biased(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    layer = GroupedQueryAttention(small_config(position="relative"), 0)
    sequence = Sequence(0, torch.arange(LENGTH)[None])
    return core.dense_attention(query, key, value, sequence, layer.relative_bias, 0.25)


@pytest.mark.parametrize("attend", [selected, biased])
def test_what_chunks_of_queries_add_to_a_gradient_adds_up_in_float32(attend, monkeypatch):
    monkeypatch.setitem(nsa_layer.QUERIES_PER_CHUNK, "cpu", 6)
    monkeypatch.setattr(core, "BIAS_CHUNK", 8)
    reference = gradients(attend, torch.double)
    errors = [relative_error(*pair) for pair in zip(gradients(attend, torch.bfloat16), reference, strict=True)]
    assert max(errors) < BOUND, errors


def test_the_gradient_of_gathered_keys_is_never_added_up_in_16_bit(monkeypatch):
    """A CPU adds up in float32 inside index_add and a GPU does not, so the type is asserted and not the error."""
    types = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, _, args=(), kwargs=None):
            if "index_add" in str(func) or "index_put" in str(func) or "scatter_add" in str(func):
                types.append(args[0].dtype)
            return func(*args, **(kwargs or {}))

    for chunk in (64, LENGTH):
        monkeypatch.setitem(nsa_layer.QUERIES_PER_CHUNK, "cpu", chunk)
        with Watch():
            gradients(selected, torch.bfloat16)
    assert set(types) == {torch.float32}
