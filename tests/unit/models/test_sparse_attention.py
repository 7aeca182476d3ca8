"""Native sparse attention against the equations of arXiv 2502.11089, one query and one head at a time."""

import random

import pytest
import torch

from effllm.models.decoder.attention import nsa_layer
from effllm.models.decoder.attention.core import Sequence
from effllm.models.decoder.attention.nsa_layer import NativeSparseAttention
from effllm.models.decoder.positions.layers import rotary_angles

from .conftest import small_config

SHAPES = 16


def random_case(seed: int) -> tuple[NativeSparseAttention, torch.Tensor]:
    """A layer of a random shape with random weights, and an input for it."""
    draw = random.Random(seed)
    stride = draw.choice([1, 2, 3])
    heads = draw.choice([1, 2])
    local, initial = draw.choice([1, 2]), draw.choice([0, 1])
    config = small_config(
        attention="nsa",
        position=draw.choice(["rope", "relative", "none"]),
        num_key_value_heads=heads,
        num_attention_heads=heads * draw.choice([1, 2, 3]),
        head_dim=draw.choice([4, 8]),
        hidden_size=24,
        nsa_window=draw.choice([1, 3, 7]),
        nsa_compression_stride=stride,
        nsa_compression_block=stride * draw.choice([1, 2, 3]),
        nsa_selection_block=stride * draw.choice([1, 2, 4]),
        nsa_initial_blocks=initial,
        nsa_local_blocks=local,
        nsa_selected_blocks=initial + local + draw.choice([0, 1, 2]),
    )
    torch.manual_seed(seed)
    layer = NativeSparseAttention(config, 0).double()
    for weight in layer.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    return layer, torch.randn(2, draw.choice([1, 5, 26, 37]), 24, dtype=torch.double)


def run(layer: NativeSparseAttention, hidden: torch.Tensor) -> torch.Tensor:
    position_ids = torch.arange(hidden.shape[1])[None]
    angles = None
    if layer.config.position == "rope":
        angles = rotary_angles(position_ids, layer.head_dim, layer.config.rope_theta)
    return layer(hidden, Sequence(0, position_ids, angles), None)


def brute_force(layer: NativeSparseAttention, hidden: torch.Tensor) -> torch.Tensor:
    """Eq. 5 to 12, with blocks, tokens and queries counted from 0."""
    shape, dim = layer.shape, layer.head_dim
    batch, length, _ = hidden.shape
    group_size = layer.heads // layer.kv_heads
    blocks = range((length - shape.block) // shape.stride + 1 if length >= shape.block else 0)

    def turned(x: torch.Tensor, position: int) -> torch.Tensor:
        if layer.config.position != "rope":
            return x
        pairs = torch.complex(x[: dim // 2], x[dim // 2 :])
        frequency = layer.config.rope_theta ** -(torch.arange(0, dim, 2, dtype=torch.float32) / dim)
        turned_pairs = pairs * torch.polar(torch.ones(dim // 2), position * frequency)
        return torch.cat((turned_pairs.real, turned_pairs.imag))

    def phi(compressor, tokens: torch.Tensor) -> torch.Tensor:
        flat = (tokens + compressor.positions).reshape(-1)
        inner = torch.nn.functional.gelu(compressor.up_proj.weight @ flat)
        return compressor.down_proj.weight @ inner

    def bias(head: int, distance: int) -> torch.Tensor | float:
        table = layer.relative_bias
        return 0.0 if table is None else table.table[head, min(distance, table.max_distance)]

    def attend(head: int, t: int, q: torch.Tensor, keys: dict, values: dict) -> tuple[torch.Tensor, torch.Tensor]:
        """softmax over entries keyed by position; the probabilities in the order of `keys`."""
        if not keys:
            return torch.zeros(dim, dtype=q.dtype), torch.zeros(0, dtype=q.dtype)
        scores = torch.stack([q @ key / dim**0.5 + bias(head, t - at) for at, key in keys.items()])
        weights = scores.softmax(0)
        return sum(w * v for w, v in zip(weights, values.values(), strict=True)), weights

    rows = []
    for b in range(batch):
        q = layer.q_proj(hidden[b]).view(length, layer.heads, dim)
        k = layer.k_proj(hidden[b]).view(length, 3, layer.kv_heads, dim)
        v = layer.v_proj(hidden[b]).view(length, 3, layer.kv_heads, dim)
        gate = torch.sigmoid(layer.gate_proj(hidden[b])).view(length, layer.heads, 3)
        output = torch.zeros(length, layer.heads, dim, dtype=hidden.dtype)
        for t in range(length):
            for group in range(layer.kv_heads):
                heads = range(group * group_size, (group + 1) * group_size)
                spans = {i * shape.stride + shape.block - 1: i * shape.stride for i in blocks}
                spans = {end: begin for end, begin in spans.items() if end <= t}
                k_cmp = {e: turned(phi(layer.key_compressor, k[s : e + 1, 0, group]), e) for e, s in spans.items()}
                v_cmp = {e: phi(layer.value_compressor, v[s : e + 1, 0, group]) for e, s in spans.items()}
                queries = {h: turned(q[t, h], t) for h in heads}
                compressed = {h: attend(h, t, queries[h], k_cmp, v_cmp) for h in heads}
                shared = sum(p for _, p in compressed.values()).tolist()

                current = t // shape.selection_block
                per_block, per_window = shape.selection_block // shape.stride, shape.block // shape.stride
                score = []
                for j in range(current + 1):
                    names = [per_block * (j + 1) - m - n for m in range(per_block) for n in range(per_window)]
                    score.append(sum(shared[i - 1] for i in names if 1 <= i <= len(shared)))
                fixed = {j for j in range(current + 1) if j < shape.initial_blocks or j > current - shape.local_blocks}
                free = sorted(set(range(current + 1)) - fixed, key=lambda j: -score[j])
                chosen = fixed | set(free[: shape.selected_blocks - len(fixed)])
                inside = [i for i in range(t + 1) if i // shape.selection_block in chosen]
                window = range(max(0, t - shape.window + 1), t + 1)
                for h in heads:
                    parts = [compressed[h][0]]
                    for branch, positions in ((1, inside), (2, window)):
                        keys = {i: turned(k[i, branch, group], i) for i in positions}
                        values = {i: v[i, branch, group] for i in positions}
                        parts.append(attend(h, t, queries[h], keys, values)[0])
                    output[t, h] = sum(g * part for g, part in zip(gate[t, h], parts, strict=True))
        rows.append(layer.o_proj(output.flatten(1)))
    return torch.stack(rows)


@pytest.mark.parametrize("seed", range(SHAPES))
def test_output_and_gradients_equal_the_equations_evaluated_one_by_one(seed, monkeypatch):
    layer, hidden = random_case(seed)
    if seed % 2:
        # Few enough that the queries go through in several recomputed chunks.
        monkeypatch.setitem(nsa_layer.QUERIES_PER_CHUNK, "cpu", 8)
    hidden.requires_grad_()
    inputs = [hidden, *layer.parameters()]
    names = ["hidden", *(name for name, _ in layer.named_parameters())]
    results = []
    for attention in (run, brute_force):
        output = attention(layer, hidden)
        direction = torch.randn(output.shape, dtype=output.dtype, generator=torch.Generator().manual_seed(seed))
        gradients = torch.autograd.grad((output * direction).sum(), inputs, allow_unused=True)
        gradients = [torch.zeros_like(i) if g is None else g for i, g in zip(inputs, gradients, strict=True)]
        results.append((output.detach(), dict(zip(names, gradients, strict=True))))
    # Scores are float32 inside the compressed branch, and so are the angles of the rotation.
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-3, atol=1e-3)


def test_every_gate_and_compression_parameter_receives_a_gradient():
    layer = NativeSparseAttention(small_config(attention="nsa"), 0)
    for weight in layer.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    run(layer, torch.randn(1, 20, 32)).square().sum().backward()
    gates = layer.gate_proj.weight.grad.view(4, 3, -1).abs().sum(-1)
    assert (gates > 0).all()
    for compressor in (layer.key_compressor, layer.value_compressor):
        assert all((weight.grad.abs() > 0).any() for weight in compressor.parameters())
        assert (compressor.positions.grad.abs().sum(1) > 0).all()


def test_the_sparse_layer_is_causal_at_every_position():
    layer = NativeSparseAttention(small_config(attention="nsa"), 0)
    for weight in layer.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    hidden = torch.randn(1, 30, 32, requires_grad=True)
    output = run(layer, hidden)
    for t in range(30):
        (gradient,) = torch.autograd.grad(output[0, t].sum(), hidden, retain_graph=True)
        assert gradient[0, t + 1 :].abs().sum() == 0
        assert gradient[0, t].abs().sum() > 0


def test_no_tensor_of_the_sparse_layer_grows_with_the_square_of_the_length(monkeypatch):
    """The largest tensor of a forward and backward pass doubles, not quadruples, with the length."""
    monkeypatch.setitem(nsa_layer.QUERIES_PER_CHUNK, "cpu", 64)
    layer = NativeSparseAttention(small_config(attention="nsa"), 0)

    def largest(length: int) -> int:
        sizes = []

        class Watch(torch.utils._python_dispatch.TorchDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                out = func(*args, **(kwargs or {}))
                if isinstance(out, torch.Tensor):
                    sizes.append(out.numel())
                return out

        with Watch():
            run(layer, torch.randn(1, length, 32, requires_grad=True)).sum().backward()
        return max(sizes)

    assert largest(1024) <= 2.5 * largest(512)


def test_the_importance_of_blocks_is_the_probability_they_overlap():
    """Block 64, stride 32, selection block 64: half of the neighbours' probability and all of its own, twice."""
    from effllm.models.decoder.attention.nsa_branches import SparseShape, block_importance

    shape = SparseShape(128, 64, 32, 64, 4, 1, 2)
    p = torch.tensor([0.1, 0.2, 0.4, 0.3, 0.0])
    expected = torch.tensor([2 * 0.1 + 0.2, 0.2 + 2 * 0.4 + 0.3, 0.3])
    torch.testing.assert_close(block_importance(p, 3, shape), expected)
