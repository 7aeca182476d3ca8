"""The fused feed-forward layer's bookkeeping, by plain stand-ins for quack's products; on Hopper GPUs the real ones."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from effllm.models.decoder.feed_forward import moe_layer
from effllm.models.decoder.feed_forward.moe_layer import Experts
from effllm.models.decoder.feed_forward.swiglu_layer import SwiGLU
from effllm.models.decoder.kernels.choice import choosing
from effllm.models.decoder.kernels.swiglu import Copies, fused_swiglu

# Relative error of a bfloat16 result whose products add up in float32.
BOUND = 6e-3
ROWS = [40, 0, 9, 71]
CONFIG = SimpleNamespace(hidden_size=64, intermediate_size=96, moe_intermediate_size=96, num_experts=len(ROWS))


def parts(x: Tensor, bounds: Tensor, dim: int = 0) -> tuple[Tensor, ...]:
    return x.split(bounds.diff().tolist(), dim=dim)


def gemm_gated(x, weight, activation, cu_seqlens_m, tuned):
    states = torch.cat([part @ each for part, each in zip(parts(x, cu_seqlens_m), weight, strict=True)])
    return states, F.silu(states[:, ::2].float()).mul(states[:, 1::2]).bfloat16()


def gemm_dgated(upstream, weight, states, activation, cu_seqlens_m, tuned):
    back = torch.cat([part @ each for part, each in zip(parts(upstream, cu_seqlens_m), weight, strict=True)])
    leaf = states.detach().float().requires_grad_()
    with torch.enable_grad():
        inner = F.silu(leaf[:, ::2]) * leaf[:, 1::2]
    (gradient,) = torch.autograd.grad(inner, leaf, back.float())
    return gradient.bfloat16(), inner.detach().bfloat16()


def execute(a, b, total, _, cu_seqlens_k, add_to_output, concat_layout, **__):
    pieces = zip(parts(a.float(), cu_seqlens_k, 1), parts(b.float(), cu_seqlens_k), strict=True)
    made = torch.stack([left @ right for left, right in pieces])
    if concat_layout:
        made = torch.cat([made[:, ::2], made[:, 1::2]], dim=1)
    total.copy_(total + made if add_to_output else made)


@pytest.fixture
def stand_ins(monkeypatch):
    module = ModuleType("quack.gemm_interface")
    for name, function in (("gemm_gated", gemm_gated), ("gemm_dgated", gemm_dgated), ("_gemm_execute", execute)):
        setattr(module, name, function)
    module.RoundingMode = module.SplitKMode = SimpleNamespace(RN=0, SERIAL=0)
    module.default_config = lambda device: None
    monkeypatch.setitem(sys.modules, "quack", ModuleType("quack"))
    monkeypatch.setitem(sys.modules, "quack.gemm_interface", module)


def assert_close(value: Tensor, reference: Tensor) -> None:
    error = ((value.double() - reference.double()).norm() / reference.double().norm()).item()
    assert error < BOUND, error


def drawn(module: nn.Module, device: str = "cpu") -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for weight in module.parameters():
        weight.data = torch.randn(weight.shape, generator=generator).mul(0.1).to(device)
    return module


def steps(forward, reference_forward, weights, references, rows: int, device: str) -> None:
    """Three micro batches, an optimizer's step, and one more, against float32; outputs and all gradients."""
    optimizers = [torch.optim.AdamW(each, lr=0.1, fused=True) for each in (weights, references)]
    for micro in range(4):
        generator = torch.Generator().manual_seed(micro)
        x, upstream = torch.randn(2, rows, CONFIG.hidden_size, generator=generator).bfloat16().to(device)
        x, exact = x.requires_grad_(), x.detach().float().requires_grad_()
        with torch.autocast(device, torch.bfloat16):
            output = forward(x)
        output.backward(upstream)
        reference = reference_forward(exact)
        reference.backward(upstream.float())
        assert_close(output, reference)
        assert_close(x.grad, exact.grad)
        for weight, other in zip(weights, references, strict=True):
            assert weight.grad.dtype == torch.float32
            assert weight.grad.is_contiguous()
            assert_close(weight.grad, other.grad)
        if micro == 2:
            for weight, other in zip(weights, references, strict=True):
                other.grad = weight.grad.clone()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()


def experts_reference(gate_up: Tensor, down: Tensor):
    def forward(x: Tensor) -> Tensor:
        out = []
        for part, wide, narrow in zip(x.split(ROWS), gate_up, down, strict=True):
            gate, up = F.linear(part, wide).chunk(2, dim=-1)
            out.append(F.linear(F.silu(gate) * up, narrow))
        return torch.cat(out)

    return forward


def test_gradients_add_up_over_micro_batches_and_a_step_renews_the_copies(stand_ins):
    experts, references = drawn(Experts(CONFIG)), drawn(Experts(CONFIG))
    rows, copies = torch.tensor(ROWS), Copies()
    gate_up, down = experts.gate_up_proj, experts.down_proj
    made = []

    def forward(x: Tensor) -> Tensor:
        made.append(copies.of((gate_up,), (down,))[0].data_ptr())
        return fused_swiglu(x, (gate_up,), (down,), copies, rows)

    reference = experts_reference(references.gate_up_proj, references.down_proj)
    steps(forward, reference, [gate_up, down], [references.gate_up_proj, references.down_proj], sum(ROWS), "cpu")
    assert len(set(made[:3])) == 1
    assert len(copies.of((gate_up,), (down,))) == 2


def test_gradients_that_others_have_written_are_added_to(stand_ins):
    experts = drawn(Experts(CONFIG))
    gate_up, down = experts.gate_up_proj, experts.down_proj
    rows = torch.tensor(ROWS)
    x = torch.randn(sum(ROWS), CONFIG.hidden_size).bfloat16()

    def gradient(before: Tensor | None) -> Tensor:
        gate_up.grad, down.grad = before, None
        fused_swiglu(x, (gate_up,), (down,), Copies(), rows).float().square().sum().backward()
        return gate_up.grad

    alone = gradient(None).clone()
    # Neither is as the layer makes them: one lies otherwise in memory.
    before = torch.randn(alone.shape[0], alone.shape[2], alone.shape[1]).mT
    torch.testing.assert_close(gradient(before.clone(memory_format=torch.preserve_format)), alone + before)


def test_a_compiled_layer_has_no_graph_beside_the_products(stand_ins, monkeypatch):
    """The products cut the graph of a decoder layer; one of two operators between them would cost more than it does."""
    monkeypatch.setattr(moe_layer, "objection_to_fused", torch.compiler.assume_constant_result(lambda x, weights: None))
    experts, graphs = drawn(Experts(CONFIG)), []

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    x = torch.randn(sum(ROWS), CONFIG.hidden_size)
    expected = experts(x, torch.tensor(ROWS))
    with choosing({"feed_forward": "quack"}) as used:
        torch.compile(experts, backend=backend)(x, torch.tensor(ROWS)).sum().backward()
    assert used == {"feed_forward": {"quack": None}} and experts.gate_up_proj.grad is not None
    assert graphs == []
    with choosing({"feed_forward": "quack"}):
        assert_close(experts(x, torch.tensor(ROWS)), expected)


@pytest.mark.gpu
def test_experts_by_quack_are_those_of_float32():
    pytest.importorskip("quack")
    experts, references = drawn(Experts(CONFIG), "cuda"), drawn(Experts(CONFIG), "cuda")
    tokens = torch.tensor(ROWS, device="cuda")
    reference = experts_reference(references.gate_up_proj, references.down_proj)
    with choosing({"feed_forward": "quack"}):
        steps(
            lambda x: experts(x, tokens), reference, list(experts.parameters()), list(references.parameters()),
            sum(ROWS), "cuda",
        )  # fmt: skip


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [77, 512])
def test_a_layer_by_quack_is_that_of_float32(rows):
    pytest.importorskip("quack")
    layer, references = drawn(SwiGLU(CONFIG), "cuda"), drawn(SwiGLU(CONFIG), "cuda")
    with choosing({"feed_forward": "quack"}):
        steps(
            layer, lambda x: plain(references, x), list(layer.parameters()), list(references.parameters()), rows, "cuda"
        )


def plain(layer: SwiGLU, x: Tensor) -> Tensor:
    with choosing({"feed_forward": "torch"}):
        return layer(x)


@pytest.mark.parametrize("change", ["bfloat16", "frozen", "odd", "short"])
def test_what_speaks_against_it_is_said(change, monkeypatch):
    from effllm.models.decoder.kernels import swiglu

    monkeypatch.setattr(swiglu, "_absence", lambda: None)
    x = SimpleNamespace(device=torch.device("cuda"), numel=lambda: 1 << (20 if change == "short" else 40))
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: True)
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda kind: torch.bfloat16)
    whole = (nn.Parameter(torch.ones(16, 32)),)
    with choosing({"feed_forward": "quack"}):
        assert swiglu.objection_to_fused(x, whole) is None
    weight = nn.Parameter(torch.ones(16, 40 if change == "odd" else 32), requires_grad=change != "frozen")
    weight = nn.Parameter(weight.bfloat16()) if change == "bfloat16" else weight
    says = {"odd": "multiples of 16", "short": "so short"}.get(change, "float32 weights, all of them trained")
    assert says in swiglu.objection_to_fused(x, (weight,))
