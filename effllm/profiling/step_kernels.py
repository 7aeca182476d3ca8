"""What a compiled decoding step of one sequence gains by: its products as reductions, and attention without copies.

torch.compile turns a product of one row into a reduction, which reads a weight faster than cuBLAS, but leaves one with
a bias to cuBLAS, and computes the input of another anew for every row of its weight. Attention over a static cache has
a mask, for which the library repeats the keys of every group of heads in memory.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

# Weights of one input whose products are one kernel.
_TOGETHER = 3
# Keys that one program attends to at least, and how many programs suffice for a device.
_TILE, _PROGRAMS = 32, 264
_ATTENTION = "effllm_one_query"


def compiled_step(model: Callable[..., Any]) -> Callable[..., Any]:
    """The model, compiled for one token at a time."""
    # A backend of one's own gets no options from torch.compile.
    return torch.compile(model, fullgraph=True, dynamic=False, backend=_compile)


def _compile(graph: fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
    # It takes seconds to import.
    from torch._inductor.compile_fx import compile_fx

    merge_products(graph)
    # What is left of a layer is small: as few kernels as possible, each launched while the one before it still runs.
    return compile_fx(graph, inputs, config_patches={"combo_kernels": True, "triton.enable_pdl": True})


def merge_products(graph: fx.GraphModule) -> None:
    """Replace the linear layers that see one row by `row_products`, those of one input together."""
    by_input: dict[fx.Node, list[fx.Node]] = defaultdict(list)
    for node in graph.graph.find_nodes(op="call_function", target=F.linear):
        source, weight = node.args[0], node.args[1]
        shape = source.meta["example_value"].shape
        stored = weight.meta["example_value"]
        # A quantized weight is a tensor of another class, with a product of its own.
        if shape.numel() == shape[-1] and stored.is_contiguous() and not is_traceable_wrapper_subclass(stored):
            by_input[source].append(node)
    for nodes in by_input.values():
        for start in range(0, len(nodes), _TOGETHER):
            _merge(graph.graph, nodes[start : start + _TOGETHER])
    graph.graph.lint()
    graph.recompile()


def _merge(graph: fx.Graph, nodes: list[fx.Node]) -> None:
    # As it is now: the input of one may be the result of another.
    source = nodes[0].args[0]
    weights = [node.args[1] for node in nodes]
    biases = [node.args[2] if len(node.args) > 2 else node.kwargs.get("bias") for node in nodes]
    # Weights are inputs of the graph, and so are before the first.
    with graph.inserting_before(nodes[0]):
        merged = graph.call_function(torch.ops.effllm.row_products.default, (source, weights, biases))
        start = 0
        for node, weight in zip(nodes, weights, strict=True):
            words = weight.meta["example_value"].shape[0]  # type: ignore[union-attr]
            part = graph.call_function(torch.narrow, (merged, -1, start, words))
            node.replace_all_uses_with(part)
            start += words
    for node in nodes:
        graph.erase_node(node)


@torch.library.custom_op(
    "effllm::row_products",
    mutates_args=(),
    device_types="cuda",
    schema="(Tensor source, Tensor[] weights, Tensor?[] biases) -> Tensor",
)
def row_products(source: Tensor, weights: list[Tensor], biases: list[Tensor | None]) -> Tensor:
    """`source` [1, .., width] by up to three weights [words, width], each with a bias or none, one after the other."""
    from effllm.profiling import step_kernels_triton as kernels

    words = [weight.shape[0] for weight in weights]
    out = source.new_empty((*source.shape[:-1], sum(words)))
    spare = _TOGETHER - len(weights)
    given = [*weights, *weights[:1] * spare]
    if any(bias is not None for bias in biases):
        added = [source.new_zeros(n) if bias is None else bias for n, bias in zip(words, biases, strict=True)]
    else:
        added = []
    width = source.shape[-1]

    def grid(meta: dict[str, Any]) -> tuple[int]:
        return (sum(-(-n // meta["BLOCK_WORDS"]) for n in words),)

    kernels.tuned_row_products[grid](
        source.contiguous(), *given, *(added or given), *(added[:1] or given[:1]) * spare if added else (), out,
        *words, *[0] * spare, width, HAS_BIAS=bool(added),
    )  # fmt: skip
    return out


@row_products.register_fake
def _(source: Tensor, weights: list[Tensor], biases: list[Tensor | None]) -> Tensor:
    return source.new_empty((*source.shape[:-1], sum(weight.shape[0] for weight in weights)))


@row_products.register_kernel("cpu")
def _(source: Tensor, weights: list[Tensor], biases: list[Tensor | None]) -> Tensor:
    return torch.cat([F.linear(source, *each) for each in zip(weights, biases, strict=True)], -1)


@torch.library.custom_op("effllm::one_query", mutates_args=(), device_types="cuda")
def one_query(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Context [B, H, 1, D] of one query [B, H, 1, D] over key and value [B, G, T, D] where `mask` [B, 1, 1, T] is."""
    from effllm.profiling import step_kernels_triton as kernels

    batch, heads, _, size = query.shape
    groups, length = key.shape[1:3]
    sharing = heads // groups
    tiles = -(-length // _TILE)
    chunk = max(1, -(-tiles * batch * groups // _PROGRAMS)) * _TILE
    splits = -(-length // chunk)
    parts = query.new_empty((batch, heads, splits, size), dtype=torch.float32)
    top, total = query.new_empty((2, batch, heads, splits), dtype=torch.float32)
    mask = mask.expand(batch, 1, 1, length)
    kernels.attend_kernel[(batch * groups, splits)](
        query, key, value, mask, parts, top, total, query.stride(0), query.stride(1), *key.stride()[:3],
        *value.stride()[:3], mask.stride(0), mask.stride(3), scale, length, heads, splits,
        SIZE=size, SHARING=sharing, SHARING_PADDED=max(16, 1 << (sharing - 1).bit_length()), CHUNK=chunk, TILE=_TILE,
    )  # fmt: skip
    out = query.new_empty(query.shape)
    kernels.merge_kernel[(batch * heads,)](
        parts, top, total, out, splits, SIZE=size, SPLITS_PADDED=1 << (splits - 1).bit_length()
    )
    return out


@one_query.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
    return query.new_empty(query.shape)


@one_query.register_kernel("cpu")
def _(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale, enable_gqa=True)


def _attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """Attention as Transformers' models call it; what is not one query over a masked cache goes the library's way."""
    size = query.shape[-1]
    if (
        not settings.get("dropout")
        and all(settings.get(name) is None for name in ("position_bias", "softcap", "s_aux"))
        and query.shape[2] == 1
        and attention_mask is not None
        and attention_mask.dtype == torch.bool
        and attention_mask.shape[1] == 1
        and value.shape[-1] == size
        and size in (16, 32, 64, 128, 256)
        and key.stride(-1) == value.stride(-1) == query.stride(-1) == 1
    ):
        scale = size**-0.5 if scaling is None else scaling
        return one_query(query, key, value, attention_mask, scale).transpose(1, 2), None
    return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **settings)


AttentionInterface.register(_ATTENTION, _attend)
AttentionMaskInterface.register(_ATTENTION, sdpa_mask)


@contextmanager
def attending_by_one_query(model: PreTrainedModel) -> Iterator[None]:
    """Let the model attend by `one_query` meanwhile, if it attends by SDPA."""
    before = model.config._attn_implementation
    if before != "sdpa":
        yield
        return
    model.set_attn_implementation(_ATTENTION)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
