"""The fused kernels against plain torch in float32, at odd lengths, for grouped and single heads and several rows."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from effllm.errors import CellFailure
from effllm.models import recurrent_kernels
from effllm.models.decoder import EffForCausalLM
from effllm.models.decoder.attention import nsa_branches as branches
from effllm.models.decoder.attention.core import Sequence, dense_attention
from effllm.models.decoder.kernels import strided
from effllm.models.decoder.kernels.choice import choosing
from effllm.models.decoder.kernels.selection import SelectedAttention
from effllm.models.decoder.positions.layers import RelativeBias

from .conftest import small_config

pytestmark = pytest.mark.gpu

# Relative error of a 16-bit result whose products add up in float32: operands are rounded to 8 bits.
BOUND = 5e-3
SHAPES = [(2, 12, 2, 1000, 128), (1, 3, 3, 129, 64), (3, 4, 1, 517, 32), (1, 6, 2, 77, 16)]


def inputs(batch: int, heads: int, kv_heads: int, length: int, dim: int) -> list[torch.Tensor]:
    """Query, key, value and a gradient, exact in bfloat16."""
    generator = torch.Generator("cuda").manual_seed(length)
    shapes = [(batch, h, length, dim) for h in (heads, kv_heads, kv_heads, heads)]
    return [torch.randn(s, device="cuda", generator=generator).bfloat16().float() for s in shapes]


def results(attend, states, gradient, dtype, *parameters) -> list[torch.Tensor]:
    """The output, and the gradients of the states, which are given in `dtype`, and of the parameters."""
    leaves = [state.to(dtype).requires_grad_() for state in states]
    output = attend(*leaves)
    return [output.detach(), *torch.autograd.grad(output, [*leaves, *parameters], gradient.to(output.dtype))]


def assert_close(values: list[torch.Tensor], references: list[torch.Tensor]) -> None:
    errors = [
        ((v.double() - r.double()).norm() / r.double().norm()).item() for v, r in zip(values, references, strict=True)
    ]
    assert max(errors) < BOUND, errors


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_bias_by_a_near_band_and_a_far_part_is_the_biased_softmax(shape, deterministic):
    _, heads, _, length, dim = shape
    *states, gradient = inputs(*shape)
    config = small_config(
        attention="mha", num_attention_heads=heads, hidden_size=heads * dim, relative_attention_max_distance=64
    )
    bias = RelativeBias(config).cuda()
    torch.nn.init.normal_(bias.table)
    sequence = Sequence(0, torch.arange(length, device="cuda")[None])

    def attend(query, key, value):
        return dense_attention(query, key, value, sequence, bias, dim**-0.5)

    torch.use_deterministic_algorithms(deterministic)
    try:
        with choosing({"relative": "near_far"}) as used:
            fused = results(attend, states, gradient, torch.bfloat16, bias.table)
    finally:
        torch.use_deterministic_algorithms(False)
    assert used == {"relative": {"near_far": None}}
    with choosing({"relative": "chunked"}):
        assert_close(fused, results(attend, states, gradient, torch.float32, bias.table))


@pytest.mark.parametrize("shape", [(2, 12, 2, 1000, 128), (1, 4, 4, 129, 128), (3, 4, 1, 517, 128)])
def test_flash_attention_is_the_softmax_of_float32(shape):
    pytest.importorskip("flash_attn.cute.interface")
    *states, gradient = inputs(*shape)
    sequence = Sequence(0, torch.arange(shape[3], device="cuda")[None])

    def attend(query, key, value):
        return dense_attention(query, key, value, sequence, None, shape[4] ** -0.5)

    with choosing({"attention": "flash_attn_4"}) as used:
        fused = results(attend, states, gradient, torch.bfloat16)
        compiled = results(torch.compile(attend), states, gradient, torch.bfloat16)
    assert used == {"attention": {"flash_attn_4": None}}
    with choosing({"attention": "sdpa"}):
        reference = results(attend, states, gradient, torch.float32)
    assert_close(fused, reference)
    assert_close(compiled, reference)


@pytest.mark.parametrize("chosen", [3, 7])
@pytest.mark.parametrize("shape", SHAPES)
def test_selected_blocks_are_attended_to_as_by_gathering_them(shape, chosen):
    batch, _, groups, length, dim = shape
    *states, gradient = inputs(*shape)
    rule = branches.SparseShape(32, 32, 16, 32, chosen, 1, 2)
    importance = torch.rand(batch, groups, length, -(-length // 32), device="cuda")
    blocks = branches.select_blocks(importance, torch.arange(length, device="cuda")[None], rule)
    start = torch.zeros(1, dtype=torch.long, device="cuda")

    def gathered(query, key, value):
        past = branches.KVContext(None, None, key, value, start)
        return branches.selected_attention(query, past, blocks, 0, rule, None)

    def fused(query, key, value):
        return SelectedAttention.apply(query, key, value, blocks, 32, dim**-0.5)

    first = results(fused, states, gradient, torch.bfloat16)
    assert_close(first, results(gathered, states, gradient, torch.float32))
    again = results(fused, states, gradient, torch.bfloat16)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("shape", SHAPES)
def test_compression_gives_context_gradients_and_importance_of_the_written_out_softmax(shape):
    length, dim = shape[-2:]
    query, key, value, gradient = inputs(*shape)
    rule = branches.SparseShape(32, 32, 16, 32, 3, 1, 2)
    complete = branches.block_count(length, 32, 16)
    states = [query, key[:, :, :complete].contiguous(), value[:, :, :complete].contiguous()]
    start = torch.zeros(1, dtype=torch.long, device="cuda")
    importances = []

    def written_out(query, key, value):
        context, importance = branches.compressed_attention(
            query, branches.KVContext(key, value, key, value, start), 0, rule, None
        )
        importances.append(importance)
        return context

    def fused(query, key, value):
        context, lse = strided.StridedAttention.apply(query, key, value, dim**-0.5, 16, 32, 0)
        importances.append(strided.block_importance(query, key, lse, dim**-0.5, 16, 32, 32))
        return context

    values = results(fused, states, gradient, torch.bfloat16)
    assert_close(values, results(written_out, states, gradient, torch.float32))
    assert_close(importances[:1], importances[1:])


@pytest.mark.parametrize("window", [2, 33, 128])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_window_is_the_window_of_plain_torch(shape, window):
    *states, gradient = inputs(*shape)
    dim = shape[-1]
    rule = branches.SparseShape(window, 32, 16, 32, 3, 1, 2)
    start = torch.zeros(1, dtype=torch.long, device="cuda")

    def attend(query, key, value):
        return strided.StridedAttention.apply(query, key, value, dim**-0.5, 1, 1, window)[0]

    fused = results(attend, states, gradient, torch.bfloat16)
    plain = results(
        lambda q, k, v: branches.window_attention(q, k, v, start, 0, rule, None), states, gradient, torch.float32
    )
    assert_close(fused, plain)


@pytest.mark.parametrize(
    ("module", "settings"), [("nsa", {"attention": "nsa"}), ("relative", {"position": "relative"})]
)
@pytest.mark.parametrize("compiled", [False, True])
def test_a_model_trains_by_the_fused_kernels_as_by_plain_torch(module, settings, compiled):
    config = small_config(
        hidden_size=128,
        head_dim=32,
        max_position_embeddings=512,
        relative_attention_max_distance=32,
        nsa_window=32,
        nsa_compression_block=32,
        nsa_compression_stride=16,
        nsa_selection_block=16,
        # All that there are, so that a rounded importance cannot choose others.
        nsa_selected_blocks=32,
        **settings,
    )
    torch.manual_seed(0)
    model = EffForCausalLM(config).cuda().train()
    tokens = torch.randint(1, 97, (2, 333), device="cuda")
    gradients = {}
    plain = {"nsa": "gather", "relative": "chunked"}[module]
    for way, is_16_bit in (("auto", True), (plain, True), (plain, False)):
        torch._dynamo.reset()
        run = torch.compile(model) if compiled and way == "auto" else model
        model.zero_grad()
        with choosing({module: way}) as used, torch.autocast("cuda", torch.bfloat16, enabled=is_16_bit):
            run(tokens, labels=tokens, use_cache=False).loss.backward()
        assert list(used[module].values()) == [None]
        gradients[way, is_16_bit] = torch.cat([weight.grad.flatten() for weight in model.parameters()])
    exact = gradients.pop((plain, False))
    fused, rounded = (((gradient - exact).norm() / exact.norm()).item() for gradient in gradients.values())
    assert fused < 1.2 * rounded


def test_a_kernel_that_cannot_run_fails_the_cell(build, tokens, monkeypatch):
    model = build(attention="nsa").cuda()
    with choosing({"nsa": "blocks"}), pytest.raises(CellFailure, match="it is for 16-bit numbers, not float32"):
        model(tokens.cuda())
    monkeypatch.setattr(strided, "_ROWS", 48)
    query = torch.randn(1, 2, 64, 64, device="cuda", dtype=torch.bfloat16)
    with pytest.raises(CellFailure, match="of strided attention failed"):
        strided.forward(query, query, query, None, None, None, 1.0, 1, 1, 16)


def test_rwkv_by_the_fused_kernel_is_the_loop_over_tokens():
    pytest.importorskip("fla.ops.rwkv4")
    from transformers.models.rwkv import modeling_rwkv

    decay, first = torch.randn(2, 64, device="cuda")
    key, value, gradient = torch.randn(3, 2, 37, 64, device="cuda")
    ways = []
    for attend in (recurrent_kernels._linear_attention, modeling_rwkv.rwkv_linear_attention_cpu):
        leaves = [state.clone().requires_grad_() for state in (decay, first, key, value)]
        output, state = attend(*leaves, return_state=True)
        ways.append([output, *state, *torch.autograd.grad(output, leaves, gradient)])
    torch.testing.assert_close(ways[0], ways[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [200, 64])
def test_mamba2_by_the_fused_kernels_is_plain_torch(length):
    pytest.importorskip("mamba_ssm.ops.triton.ssd_combined")
    pytest.importorskip("causal_conv1d")
    shape = {"hidden_size": 128, "num_heads": 8, "head_dim": 32, "n_groups": 2, "state_size": 32, "chunk_size": 64}
    config = AutoConfig.for_model("mamba2", num_hidden_layers=2, vocab_size=300, **shape)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).cuda().train()
    tokens = torch.randint(0, 300, (2, length), device="cuda")
    ways = []
    for wanted in ("mamba_ssm", "torch"):
        with choosing({"mamba2": wanted}) as used, recurrent_kernels.recurrent_kernels(model):
            loss = model(tokens, labels=tokens).loss
            ways.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
        assert used == {"mamba2": {wanted: None}}
    # Tensor cores multiply float32 as TF32.
    assert_close(*ways)
