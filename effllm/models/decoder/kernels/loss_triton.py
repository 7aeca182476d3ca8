"""Triton kernels of the language-modelling loss: the logits go in, and their gradient comes out in their place."""

import triton
import triton.language as tl


@triton.jit
def cross_entropy_kernel(LOGITS, TARGETS, SCALE, LOSSES, row_stride, WORDS, IGNORED: tl.constexpr, BLOCK: tl.constexpr):
    """One row: LOSSES = -log softmax(LOGITS)[target], and LOGITS becomes (softmax - onehot) * SCALE.

    Online normalizer (Milakov and Gimelshein 2018): one pass to read, one to write. A row that is ignored gives 0.
    """
    row = tl.program_id(0).to(tl.int64)
    logits = LOGITS + row * row_stride
    target = tl.load(TARGETS + row)
    columns = tl.arange(0, BLOCK)
    if target == IGNORED:
        for start in range(0, WORDS, BLOCK):
            tl.store(
                logits + start + columns,
                tl.zeros([BLOCK], LOGITS.dtype.element_ty),
                mask=start + columns < WORDS,
            )
        tl.store(LOSSES + row, 0.0)
    else:
        scale = tl.load(SCALE)
        top = tl.full([BLOCK], -float("inf"), tl.float32)
        total = tl.zeros([BLOCK], tl.float32)
        for start in range(0, WORDS, BLOCK):
            x = tl.load(logits + start + columns, mask=start + columns < WORDS, other=-float("inf")).to(tl.float32)
            new_top = tl.maximum(top, x)
            finite = tl.where(new_top == -float("inf"), 0.0, new_top)
            total = total * tl.exp(top - finite) + tl.exp(x - finite)
            top = new_top
        highest = tl.max(top, 0)
        lse = highest + tl.log(tl.sum(total * tl.exp(top - highest), 0))
        tl.store(LOSSES + row, lse - tl.load(logits + target).to(tl.float32))
        # Every thread of the row has read the target's logit before any overwrites it.
        tl.debug_barrier()
        for start in range(0, WORDS, BLOCK):
            inside = start + columns < WORDS
            x = tl.load(logits + start + columns, mask=inside, other=-float("inf")).to(tl.float32)
            gradient = (tl.exp(x - lse) - tl.where(start + columns == target, 1.0, 0.0)) * scale
            tl.store(logits + start + columns, gradient.to(LOGITS.dtype.element_ty), mask=inside)


@triton.jit
def scale_kernel(X, FACTOR, N, BLOCK: tl.constexpr):
    """X *= FACTOR, a number on the device; nothing is read where it is 1."""
    factor = tl.load(FACTOR).to(tl.float32)
    if factor != 1.0:
        places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        x = tl.load(X + places, mask=places < N).to(tl.float32)
        tl.store(X + places, (x * factor).to(X.dtype.element_ty), mask=places < N)
