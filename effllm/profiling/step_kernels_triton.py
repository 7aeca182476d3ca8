"""Triton kernels of a decoding step: products of one row, and attention of one query over a static cache."""

import triton
import triton.language as tl


@triton.jit
def row_products_kernel(
    X, WEIGHT_0, WEIGHT_1, WEIGHT_2, BIAS_0, BIAS_1, BIAS_2, OUT, WORDS_0, WORDS_1, WORDS_2, WIDTH,
    HAS_BIAS: tl.constexpr, IS_EVEN: tl.constexpr, BLOCK_WORDS: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
):  # fmt: skip
    """OUT[words] = WEIGHT[words, WIDTH] X[WIDTH] + BIAS of up to three weights, whose results follow each other.

    A program has some words of one weight. The loads of a weight depend on nothing, and so many are under way at once.
    """
    program = tl.program_id(0)
    weight, bias, words, out = WEIGHT_0, BIAS_0, WORDS_0, OUT
    tiles_0, tiles_1 = tl.cdiv(WORDS_0, BLOCK_WORDS), tl.cdiv(WORDS_1, BLOCK_WORDS)
    if program >= tiles_0:
        if program >= tiles_0 + tiles_1:
            weight, bias, words, out = WEIGHT_2, BIAS_2, WORDS_2, OUT + WORDS_0 + WORDS_1
            program -= tiles_0 + tiles_1
        else:
            weight, bias, words, out = WEIGHT_1, BIAS_1, WORDS_1, OUT + WORDS_0
            program -= tiles_0
    rows = program * BLOCK_WORDS + tl.arange(0, BLOCK_WORDS)
    columns = tl.arange(0, BLOCK_WIDTH)
    # What is past the end is read from the last row, and not written.
    places = tl.minimum(rows, words - 1).to(tl.int64) * WIDTH
    total = tl.zeros([BLOCK_WORDS, BLOCK_WIDTH], tl.float32)
    for start in range(0, WIDTH, BLOCK_WIDTH):
        if IS_EVEN:
            x = tl.load(X + start + columns)
            w = tl.load(weight + places[:, None] + (start + columns)[None, :])
        else:
            inside = start + columns < WIDTH
            x = tl.load(X + start + columns, mask=inside, other=0.0)
            w = tl.load(weight + places[:, None] + (start + columns)[None, :], mask=inside[None, :], other=0.0)
        total += w.to(tl.float32) * x.to(tl.float32)[None, :]
    result = tl.sum(total, 1)
    if HAS_BIAS:
        result += tl.load(bias + tl.minimum(rows, words - 1)).to(tl.float32)
    tl.store(out + rows, result.to(OUT.dtype.element_ty), mask=rows < words)


@triton.jit
def attend_kernel(
    QUERY, KEY, VALUE, MASK, CONTEXT, TOP, TOTAL, query_b, query_h, key_b, key_h, key_t, value_b, value_h, value_t,
    mask_b, mask_t, scale, LENGTH, HEADS, SPLITS,
    SIZE: tl.constexpr, SHARING: tl.constexpr, SHARING_PADDED: tl.constexpr, CHUNK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The heads that share one head of keys, over CHUNK keys: what the softmax adds up there, and its greatest score.

    CONTEXT [B, H, SPLITS, SIZE], TOP and TOTAL [B, H, SPLITS] in float32. Keys that the mask leaves out wholly are
    not read: a static cache is longer than what it holds.
    """
    group, split = tl.program_id(0), tl.program_id(1)
    groups = HEADS // SHARING
    batch, head = (group // groups).to(tl.int64), group % groups
    shared, dims, places = tl.arange(0, SHARING_PADDED), tl.arange(0, SIZE), tl.arange(0, TILE)
    is_head = shared < SHARING
    heads = head * SHARING + shared
    query = tl.load(
        QUERY + batch * query_b + heads[:, None] * query_h + dims[None, :], mask=is_head[:, None], other=0.0
    )
    top = tl.full([SHARING_PADDED], -float("inf"), tl.float32)
    total = tl.zeros([SHARING_PADDED], tl.float32)
    context = tl.zeros([SHARING_PADDED, SIZE], tl.float32)
    for start in range(split * CHUNK, tl.minimum((split + 1) * CHUNK, LENGTH), TILE):
        at = start + places
        seen = tl.load(MASK + batch * mask_b + at * mask_t, mask=at < LENGTH, other=0) != 0
        if tl.max(seen.to(tl.int32), 0) > 0:
            key = tl.load(
                KEY + batch * key_b + head * key_h + at.to(tl.int64)[:, None] * key_t + dims[None, :],
                mask=seen[:, None], other=0.0,
            )  # fmt: skip
            scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
            scores = tl.where(seen[None, :], scores, -float("inf"))
            new_top = tl.maximum(top, tl.max(scores, 1))
            weights = tl.exp(scores - new_top[:, None])
            shrunk = tl.exp(top - new_top)
            value = tl.load(
                VALUE + batch * value_b + head * value_h + at.to(tl.int64)[:, None] * value_t + dims[None, :],
                mask=seen[:, None], other=0.0,
            )  # fmt: skip
            context = context * shrunk[:, None] + tl.dot(weights.to(value.dtype), value, input_precision="ieee")
            total = total * shrunk + tl.sum(weights, 1)
            top = new_top
    result = (batch * HEADS + heads) * SPLITS + split
    tl.store(TOP + result, top, mask=is_head)
    tl.store(TOTAL + result, total, mask=is_head)
    tl.store(CONTEXT + result[:, None] * SIZE + dims[None, :], context, mask=is_head[:, None])


@triton.jit
def merge_kernel(CONTEXT, TOP, TOTAL, OUT, SPLITS, SIZE: tl.constexpr, SPLITS_PADDED: tl.constexpr):
    """OUT [B, H, SIZE]: one head's parts, each weighed by what its softmax added up."""
    head = tl.program_id(0).to(tl.int64)
    splits, dims = tl.arange(0, SPLITS_PADDED), tl.arange(0, SIZE)
    is_split = splits < SPLITS
    top = tl.load(TOP + head * SPLITS + splits, mask=is_split, other=-float("inf"))
    weights = tl.exp(top - tl.max(top, 0))
    total = tl.sum(weights * tl.load(TOTAL + head * SPLITS + splits, mask=is_split, other=0.0), 0)
    parts = tl.load(
        CONTEXT + (head * SPLITS + splits)[:, None] * SIZE + dims[None, :], mask=is_split[:, None], other=0.0
    )
    out = tl.sum(parts * weights[:, None], 0) / total
    tl.store(OUT + head * SIZE + dims, out.to(OUT.dtype.element_ty))


def _blocks() -> list[triton.Config]:
    """What was best for one of the products of the 1.5B and 7B shapes on an H100; which depends on their shape."""
    blocks = ((1, 512, 2), (1, 1024, 4), (1, 2048, 8), (4, 512, 4))
    return [
        triton.Config({"BLOCK_WORDS": words, "BLOCK_WIDTH": width}, num_warps=warps) for words, width, warps in blocks
    ]


tuned_row_products = triton.autotune(_blocks(), key=["WORDS_0", "WORDS_1", "WORDS_2", "WIDTH", "HAS_BIAS"])(
    triton.heuristics({"IS_EVEN": lambda settings: settings["WIDTH"] % settings["BLOCK_WIDTH"] == 0})(
        row_products_kernel
    )
)
