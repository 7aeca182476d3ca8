"""Attention that sees both sides: the dense variants against a mask of ones, NSA against its sentences one by one."""

import json
import random

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from effllm.models.decoder.attention import ATTENTION
from effllm.models.decoder.attention.core import Sequence, projected_together
from effllm.models.decoder.attention.nsa_layer import Compressor, NativeSparseAttention

from . import nsa_foreign
from .conftest import ATTENTIONS, small_config

DENSE = [attention for attention in ATTENTIONS if attention != "nsa"]


def layer_of(attention: str, **changes) -> torch.nn.Module:
    torch.manual_seed(0)
    layer = ATTENTION[attention].build(small_config(attention=attention, position="none", **changes), 0).double()
    for weight in layer.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    return layer


def both_sides(length: int, **keys) -> Sequence:
    return Sequence(0, torch.arange(length)[None], causal=False, **keys)


@pytest.mark.parametrize("attention", DENSE)
def test_dense_attention_without_causality_is_attention_under_a_mask_of_ones(attention):
    layer, hidden = layer_of(attention), torch.randn(2, 13, 32, dtype=torch.double)
    masked = Sequence(0, torch.arange(13)[None], mask=torch.ones(1, 1, 13, 13, dtype=torch.bool))
    torch.testing.assert_close(layer(hidden, both_sides(13), None), layer(hidden, masked, None))
    assert not torch.allclose(layer(hidden, Sequence(0, torch.arange(13)[None]), None), layer(hidden, masked, None))


@pytest.mark.parametrize("attention", ["mha", "gqa", "mqa"])
def test_one_product_is_the_three_of_query_key_and_value(attention):
    layer, hidden = layer_of(attention), torch.randn(2, 13, 32, dtype=torch.double)
    layers = (layer.q_proj, layer.k_proj, layer.v_proj)
    for together, alone in zip(projected_together(hidden, layers), layers, strict=True):
        torch.testing.assert_close(together, alone(hidden))


@pytest.mark.parametrize("attention", DENSE)
def test_dense_attention_without_causality_keeps_the_fused_kernel(attention):
    layer = layer_of(attention).float()
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        layer(torch.randn(2, 13, 32), both_sides(13), None).sum().backward()


def random_case(seed: int) -> tuple[NativeSparseAttention, Tensor]:
    draw = random.Random(seed)
    stride, heads = draw.choice([1, 2, 3]), draw.choice([1, 2])
    local, initial = draw.choice([1, 2]), draw.choice([0, 1])
    layer = layer_of(
        "nsa",
        num_key_value_heads=heads,
        num_attention_heads=heads * draw.choice([1, 3]),
        head_dim=4,
        nsa_window=draw.choice([1, 3, 8]),
        nsa_compression_stride=stride,
        nsa_compression_block=stride * draw.choice([1, 2, 3]),
        nsa_selection_block=stride * draw.choice([1, 2, 4]),
        nsa_initial_blocks=initial,
        nsa_local_blocks=local,
        nsa_selected_blocks=initial + 2 * local - 1 + draw.choice([0, 1, 2]),
    )
    return layer, torch.randn(2, draw.choice([1, 16, 23]), 32, dtype=torch.double)


def phi(compressor: Compressor, tokens: Tensor) -> Tensor:
    inner = compressor.up_proj.weight @ (tokens + compressor.positions).reshape(-1)
    return compressor.down_proj.weight @ torch.nn.functional.gelu(inner)


def attend(q: Tensor, keys: list[Tensor], values: list[Tensor]) -> tuple[Tensor, Tensor]:
    if not keys:
        return torch.zeros_like(q), q.new_zeros(0)
    weights = (torch.stack(keys) @ q / len(q) ** 0.5).softmax(0)
    return weights @ torch.stack(values), weights


def brute_force(layer: NativeSparseAttention, hidden: Tensor) -> Tensor:
    """One row, query and group at a time."""
    shape, dim, length = layer.shape, layer.head_dim, hidden.shape[1]
    size = layer.heads // layer.kv_heads
    blocks, per_block = -(-length // shape.selection_block), shape.selection_block // shape.stride
    starts = [start for start in range(0, length, shape.stride) if start + shape.block <= length]
    rows = []
    for x in hidden:
        q = layer.q_proj(x).view(length, layer.heads, dim)
        k = layer.k_proj(x).view(length, 3, layer.kv_heads, dim)
        v = layer.v_proj(x).view(length, 3, layer.kv_heads, dim)
        gate = torch.sigmoid(layer.gate_proj(x)).view(length, layer.heads, 3)
        output = torch.zeros(length, layer.heads, dim, dtype=x.dtype)
        for t in range(length):
            for group in range(layer.kv_heads):
                heads = range(group * size, (group + 1) * size)
                k_cmp = [phi(layer.key_compressor, k[s : s + shape.block, 0, group]) for s in starts]
                v_cmp = [phi(layer.value_compressor, v[s : s + shape.block, 0, group]) for s in starts]
                compressed = {h: attend(q[t, h], k_cmp, v_cmp) for h in heads}
                shared = sum(p for _, p in compressed.values()).tolist()
                # A compressed block counts once for every stride that it has inside a selection block.
                score = [
                    sum(
                        p
                        for i, p in enumerate(shared)
                        for stride in range(i, i + shape.block // shape.stride)
                        if j * per_block <= stride < (j + 1) * per_block
                    )
                    for j in range(blocks)
                ]
                own = t // shape.selection_block
                fixed = {j for j in range(blocks) if j < shape.initial_blocks or abs(j - own) < shape.local_blocks}
                free = sorted(set(range(blocks)) - fixed, key=lambda j: -score[j])
                chosen = fixed | set(free[: shape.selected_blocks - len(fixed)])
                inside = [i for i in range(length) if i // shape.selection_block in chosen]
                near = [i for i in range(length) if abs(i - t) <= shape.window // 2]
                for h in heads:
                    parts = [compressed[h][0]]
                    for branch, seen in ((1, inside), (2, near)):
                        keys, values = ([states[i, branch, group] for i in seen] for states in (k, v))
                        parts.append(attend(q[t, h], keys, values)[0])
                    output[t, h] = sum(g * part for g, part in zip(gate[t, h], parts, strict=True))
        rows.append(layer.o_proj(output.flatten(1)))
    return torch.stack(rows)


@pytest.mark.parametrize("seed", range(10))
def test_sparse_attention_of_both_sides_equals_its_definition(seed):
    layer, hidden = random_case(seed)
    inputs = [hidden.requires_grad_(), *layer.parameters()]
    results = []
    for output in (layer(hidden, both_sides(hidden.shape[1]), None), brute_force(layer, hidden)):
        direction = torch.randn(output.shape, dtype=output.dtype, generator=torch.Generator().manual_seed(seed))
        gradients = torch.autograd.grad((output * direction).sum(), inputs, allow_unused=True)
        results.append(
            (output, [torch.zeros_like(i) if g is None else g for i, g in zip(inputs, gradients, strict=True)])
        )
    # Probabilities of the compressed branch are float32.
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("case", json.loads(nsa_foreign.FILE.read_text())["cases"], ids=lambda case: str(case["seed"]))
def test_sparse_attention_of_both_sides_equals_another_implementation(case):
    layer = layer_of(
        "nsa",
        hidden_size=nsa_foreign.WIDTH,
        num_attention_heads=nsa_foreign.HEADS,
        num_key_value_heads=nsa_foreign.HEADS,
        head_dim=nsa_foreign.DIM,
        nsa_window=2 * case["window"],
        nsa_compression_stride=case["block"],
        nsa_compression_block=case["block"],
        nsa_selection_block=case["block"],
        nsa_initial_blocks=0,
        nsa_local_blocks=1,
        nsa_selected_blocks=case["selected"],
    )
    drawn = {name: torch.from_numpy(array) for name, array in nsa_foreign.draws(case).items()}
    ours = {"q_proj": drawn["query"], "gate_proj": drawn["gate"], "o_proj": drawn["output"]}
    ours |= {"k_proj": drawn["key"].repeat(3, 1), "v_proj": drawn["value"].repeat(3, 1)}
    for name in ("key", "value"):
        ours |= {f"{name}_compressor.{part}_proj": drawn[f"{name}_{part}"] for part in ("up", "down")}
        layer.get_submodule(f"{name}_compressor").positions.data = drawn[f"{name}_positions"]
    for name, weight in ours.items():
        module = layer.get_submodule(name)
        module.weight.data.copy_(weight)
        if module.bias is not None:
            module.bias.data.zero_()
    output = layer(drawn["hidden"], both_sides(case["tokens"]), None)[0]
    assert len(case["compares"]) >= 2
    expected = torch.tensor(case["output"], dtype=torch.double)
    # Probabilities of our compressed branch are float32.
    torch.testing.assert_close(output[case["compares"]], expected, rtol=1e-5, atol=1e-5)
