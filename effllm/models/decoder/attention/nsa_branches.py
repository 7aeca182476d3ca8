"""The three attentions of NSA over plain tensors: compressed, selected and windowed (arXiv 2502.11089, section 3.3).

Queries are [batch, heads, C, d] for C consecutive queries from `first` on, keys and values [batch, kv heads, T, d],
both counted in the padded sequence. A position counts from a row's first real token, which `start` [batch or 1] gives.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from effllm.models.decoder.accumulation import gather_rows, widen
from effllm.models.decoder.positions.layers import RelativeBias


@dataclass(frozen=True)
class SparseShape:
    """NSA's lengths: window w, block l, stride d and selection_block l' in tokens, the others in blocks."""

    window: int
    block: int
    stride: int
    selection_block: int
    selected_blocks: int
    initial_blocks: int
    local_blocks: int


@dataclass(frozen=True)
class KVContext:
    """The keys and values of the compression and selection branches, up to a chunk's last query or further."""

    compressed_key: Tensor
    compressed_value: Tensor
    key: Tensor
    value: Tensor
    start: Tensor

    def until(self, tokens: int, shape: SparseShape) -> "KVContext":
        """Without the compressed blocks that end after the first `tokens` tokens."""
        blocks = block_count(tokens, shape.block, shape.stride)
        return replace(
            self,
            compressed_key=self.compressed_key[:, :, :blocks],
            compressed_value=self.compressed_value[:, :, :blocks],
        )

    def widened(self) -> "KVContext":
        """In float32 at least, the type in which the gradients of several chunks of queries are then added up."""
        compressed_key, compressed_value = widen(self.compressed_key), widen(self.compressed_value)
        return KVContext(compressed_key, compressed_value, widen(self.key), widen(self.value), self.start)

    def positions(self, first: int, queries: int) -> Tensor:
        """[batch or 1, queries]; padding, which has no position, takes that of the first real token."""
        index = torch.arange(first, first + queries, device=self.start.device)
        return (index - self.start[:, None]).clamp(min=0)


def block_count(tokens: int, block: int, stride: int) -> int:
    """Blocks of `block` tokens, one every `stride`, that are complete in the first `tokens` tokens."""
    return max(0, (tokens - block) // stride + 1)


def take_tokens(states: Tensor, index: Tensor) -> Tensor:
    """states [batch, heads, T, d] at index [batch or 1, n] along the tokens: [batch, heads, n, d]."""
    if index.shape[0] == 1:
        return states.index_select(2, index[0])
    batch, heads, _, dim = states.shape
    return states.gather(2, index[:, None, :, None].expand(batch, heads, -1, dim))


def compressed_attention(
    query: Tensor, past: KVContext, first: int, shape: SparseShape, bias: RelativeBias | None
) -> tuple[Tensor, Tensor]:
    """Attention over the compressed blocks that end by each query, and the importance of the selection blocks.

    Returns [batch, heads, C, d], zero for queries before the end of the first block, and [batch, kv heads, C, blocks].
    """
    batch, heads, queries, dim = query.shape
    groups, compressed = past.compressed_key.shape[1:3]
    selection_blocks = -(-(first + queries) // shape.selection_block)
    if not compressed:
        return query.new_zeros(query.shape), query.new_zeros(batch, groups, queries, selection_blocks)
    compressed_key, compressed_value = past.compressed_key.to(query.dtype), past.compressed_value.to(query.dtype)
    ends = torch.arange(compressed, device=query.device) * shape.stride + shape.block - 1
    distance = past.positions(first, queries)[..., None] - ends
    scores = query.reshape(batch, groups, -1, dim) @ compressed_key.transpose(2, 3)
    scores = scores.view(batch, heads, queries, compressed).float() * dim**-0.5
    if bias is not None:
        scores = scores + bias(distance.clamp(min=0)).transpose(0, 1)
    visible = (distance >= 0)[:, None]
    scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)
    probabilities = scores.softmax(dim=-1).masked_fill(~visible, 0)
    weights = probabilities.to(query.dtype).view(batch, groups, -1, compressed)
    context = (weights @ compressed_value).view(query.shape)
    shared = probabilities.detach().view(batch, groups, -1, queries, compressed).sum(dim=2)
    return context, block_importance(shared, selection_blocks, shape)


def block_importance(probabilities: Tensor, selection_blocks: int, shape: SparseShape) -> Tensor:
    """Eq. 9: [..., compression blocks] to [..., selection blocks].

    p_slc[j] = sum over m < l'/d and n < l/d of p_cmp[(l'/d) j - m - n], blocks counted from 1: every compression block
    counts as often as it has strides inside the selection block.
    """
    per_block, per_window = shape.selection_block // shape.stride, shape.block // shape.stride
    span, width = per_block + per_window - 1, selection_blocks * per_block
    padded = F.pad(probabilities, (per_window - 1, width - probabilities.shape[-1]))
    if span == 1:
        return padded
    # How many pairs (m, n) have the sum u; made on the device, since a copy to it would wait for all work there.
    u = torch.arange(span, dtype=probabilities.dtype, device=probabilities.device)
    weights = torch.minimum(u + 1, span - u).clamp(max=min(per_block, per_window))
    return padded.unfold(-1, span, per_block) @ weights


def select_blocks(importance: Tensor, positions: Tensor, shape: SparseShape) -> Tensor:
    """The blocks of each query, [batch, kv heads, C, n]: initial and local ones, then the most important (eq. 11).

    `importance` is [batch, kv heads, C, blocks]. Blocks of the future come last; their tokens are masked.
    """
    block = torch.arange(importance.shape[-1], device=importance.device)
    current = (positions // shape.selection_block)[:, None, :, None]
    forced = (block < shape.initial_blocks) | (block > current - shape.local_blocks)
    score = importance.masked_fill(forced, torch.inf).masked_fill(block > current, -torch.inf)
    return score.topk(min(shape.selected_blocks, importance.shape[-1]), dim=-1, sorted=False).indices


def selected_attention(
    query: Tensor, past: KVContext, blocks: Tensor, first: int, shape: SparseShape, bias: RelativeBias | None
) -> Tensor:
    """Attention over the tokens of the selected blocks (eq. 12): [batch, heads, C, d].

    The keys of each query and kv head are gathered, [n * l', d] each, so that its group of heads shares one fetch.
    """
    batch, _, queries, dim = query.shape
    groups, total = past.key.shape[1:3]
    tokens = blocks[..., None] * shape.selection_block + torch.arange(shape.selection_block, device=query.device)
    tokens = tokens.flatten(-2)
    distance = past.positions(first, queries)[:, None, :, None] - tokens
    rows = (tokens + past.start.view(-1, 1, 1, 1)).clamp(max=total - 1)
    rows = rows + total * torch.arange(batch * groups, device=query.device).view(batch, groups, 1, 1)
    size = (-1, 1, tokens.shape[-1], dim)
    key = gather_rows(past.key.view(-1, dim), rows.flatten(), query.dtype).view(size)
    value = gather_rows(past.value.view(-1, dim), rows.flatten(), query.dtype).view(size)
    grouped = query.unflatten(1, (groups, -1)).transpose(2, 3).reshape(batch * groups * queries, 1, -1, dim)
    if bias is None:
        mask = (distance >= 0).view(-1, 1, 1, tokens.shape[-1])
    else:
        per_group = bias.table.view(groups, -1, bias.table.shape[-1])
        index = distance.clamp(0, bias.max_distance)
        values = torch.stack([per_group[g][:, index[:, g]] for g in range(groups)], dim=0)
        values = values.masked_fill((distance < 0).transpose(0, 1)[:, None], -torch.inf)
        mask = values.permute(2, 0, 3, 1, 4).reshape(len(grouped), 1, -1, tokens.shape[-1]).to(query.dtype)
    context = F.scaled_dot_product_attention(grouped, key, value, attn_mask=mask)
    return context.view(batch, groups, queries, -1, dim).transpose(2, 3).reshape(query.shape)


def window_attention(
    query: Tensor, key: Tensor, value: Tensor, start: Tensor, first: int, shape: SparseShape, bias: RelativeBias | None
) -> Tensor:
    """Attention over the last w tokens, the query's own among them: [batch, heads, C, d].

    The last C keys are the queries' own tokens, at most w - 1 stand before them. Queries go in blocks of w over a strip
    of 2 w - 1 keys, with the heads of a group side by side, so that the work is linear in C.
    """
    batch, heads, queries, dim = query.shape
    groups = key.shape[1]
    step = min(shape.window, queries)
    count = -(-queries // step)
    strip = shape.window - 1 + step
    extra = count * step - queries
    missing = strip + (count - 1) * step - key.shape[2] - extra
    strips = [F.pad(states, (0, 0, missing, extra)).unfold(2, strip, step) for states in (key, value)]
    # Strips before batch: one mask [strips, 1, ...] then serves every row and head.
    keys, values = (s.permute(2, 0, 1, 4, 3).reshape(count, batch * groups, strip, dim) for s in strips)
    folded = F.pad(query, (0, 0, 0, extra)).view(batch, groups, -1, count, step, dim)
    folded = folded.permute(3, 0, 1, 2, 4, 5).reshape(count, batch * groups, -1, dim)

    row = torch.arange(step, device=query.device)[:, None]
    distance = row + shape.window - 1 - torch.arange(strip, device=query.device)
    inside = (distance >= 0) & (distance < shape.window)
    strip_start = first - (shape.window - 1) + step * torch.arange(count, device=query.device)
    token = strip_start[:, None] + torch.arange(strip, device=query.device)
    real = token >= start[:, None, None]
    # A query that is padding sees itself: with nothing to see, softmax would give NaN.
    mask = inside & (real[:, :, None] | (distance == 0))
    mask = mask.transpose(0, 1)[:, :, None, None]
    ratio = heads // groups
    shared = bias is None and len(start) == 1
    if bias is not None:
        per_head = bias(distance.clamp(min=0)).view(groups, ratio, step, strip).to(query.dtype)
        mask = per_head.masked_fill(~mask, -torch.inf)
    rows = (1, 1) if shared else (batch, groups)
    mask = mask.expand(count, *rows, ratio, step, strip).reshape(count, -1, ratio * step, strip)
    context = F.scaled_dot_product_attention(folded, keys, values, attn_mask=mask)
    context = context.view(count, batch, groups, ratio, step, dim).permute(1, 2, 3, 0, 4, 5)
    return context.reshape(batch, heads, count * step, dim)[:, :, :queries]
