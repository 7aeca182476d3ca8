"""The operators of a compiled decoding step are the layers that they replace."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from effllm.profiling.step_kernels import attending_by_one_query, merge_products, one_query, row_products

from .test_graphs import _model


def _traced(module: nn.Module, *inputs: Tensor) -> tuple[Tensor, list[Any]]:
    """What the module gives after `merge_products`, and the operators that its graph has then."""
    targets: list[Any] = []

    def backend(graph: Any, _: list[Tensor]) -> Any:
        merge_products(graph)
        targets.extend(node.target for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    torch.compiler.reset()
    result = torch.compile(module, fullgraph=True, dynamic=False, backend=backend)(*inputs)
    torch.compiler.reset()
    return result, targets


class _Layers(nn.Module):
    """Four linear layers of one input, one of them with a bias, and one of their product."""

    def __init__(self) -> None:
        super().__init__()
        self.of_one = nn.ModuleList(nn.Linear(12, words, bias=words == 7) for words in (5, 7, 8, 3))
        self.after = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        first, *others = [layer(x) for layer in self.of_one]
        return torch.cat([self.after(first), *others], -1)


@pytest.mark.parametrize(("shape", "merged"), [((1, 1, 12), 3), ((1, 2, 12), 0), ((2, 1, 12), 0)])
def test_products_of_one_row_are_merged_by_their_input(shape: tuple[int, ...], merged: int) -> None:
    torch.manual_seed(0)
    layers, x = _Layers(), torch.randn(shape)
    expected = layers(x)
    result, targets = _traced(layers, x)
    assert targets.count(torch.ops.effllm.row_products.default) == merged
    assert targets.count(F.linear) == (0 if merged else 5)
    torch.testing.assert_close(result, expected)


def test_a_quantized_weight_keeps_its_own_product() -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    torch.manual_seed(0)
    layers, x = _Layers(), torch.randn(1, 1, 12)
    quantize_(layers.of_one[0], Int8WeightOnlyConfig(set_inductor_config=False))
    expected = layers(x)
    result, targets = _traced(layers, x)
    assert targets.count(F.linear) == 1
    torch.testing.assert_close(result, expected)


def test_a_model_attends_as_before_when_its_step_is_done() -> None:
    model = _model()
    with pytest.raises(KeyError), attending_by_one_query(model):
        assert model.config._attn_implementation == "effllm_one_query"
        raise KeyError
    assert model.config._attn_implementation == "sdpa"
    model.set_attn_implementation("eager")
    with attending_by_one_query(model):
        assert model.config._attn_implementation == "eager"


def _error(result: Tensor, reference: Tensor) -> float:
    return ((result.float() - reference).norm() / reference.norm()).item()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("words", "width", "biases"), [((5,), 100, "1"), ((1536, 256, 256), 1536, "110"), ((999, 7), 896, "00")]
)
def test_row_products_are_linear_layers(words: tuple[int, ...], width: int, biases: str, dtype: torch.dtype) -> None:
    torch.manual_seed(width)
    x = torch.randn((1, 1, width), device="cuda").to(dtype)
    weights = [torch.randn((n, width), device="cuda").to(dtype) for n in words]
    added = [torch.randn(n, device="cuda").to(dtype) if b == "1" else None for n, b in zip(words, biases, strict=True)]
    exact = [
        F.linear(x.double(), weight.double(), None if bias is None else bias.double())
        for weight, bias in zip(weights, added, strict=True)
    ]
    assert _error(row_products(x, weights, added), torch.cat(exact, -1)) < (1e-5 if dtype == torch.float32 else 5e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("batch", "heads", "groups", "length", "size"), [(1, 6, 1, 77, 32), (2, 28, 4, 640, 128), (3, 5, 5, 9000, 64)]
)
def test_one_query_attends_where_its_mask_is(
    batch: int, heads: int, groups: int, length: int, size: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(length)
    query = torch.randn((batch, 1, heads, size), device="cuda").to(dtype).transpose(1, 2)
    key, value = torch.randn((2, batch, groups, length, size), device="cuda").to(dtype)
    places = torch.arange(length, device="cuda")
    mask = (places > 2)[None, None, None] & (
        places < torch.tensor([length - 3, 5, 70], device="cuda")[:batch, None, None, None]
    )
    exact = F.scaled_dot_product_attention(
        query.double(), key.double(), value.double(), attn_mask=mask, scale=0.1, enable_gqa=True
    )
    assert _error(one_query(query, key, value, mask, 0.1), exact) < (1e-5 if dtype == torch.float32 else 5e-3)
