"""Triton kernels of attention to keys that lie at equal distances: a window, a band with a bias, compressed blocks.

Key j of TK ends at position e_j = j STRIDE + BLOCK - 1. Query i sees it if 0 <= i - e_j, and i - e_j < WINDOW unless
WINDOW is 0. STRIDE = BLOCK = 1 is a sliding window; a block of l tokens every d tokens is the compression of NSA.

Queries are [B, H, T, D], keys [B, H / G, TK, D]; head dimensions are contiguous, other strides are given. Softmax is
kept in float32, products take 16-bit operands and add up in float32. No kernel uses atomics.
"""

import triton
import triton.language as tl


@triton.jit
def _tile(pointer, rows, dims, stride, count, D: tl.constexpr):
    """Rows [n, BD] of a matrix of `count` rows; what lies outside is 0."""
    mask = (rows >= 0)[:, None] & (rows < count)[:, None] & (dims < D)[None, :]
    return tl.load(pointer + rows.to(tl.int64)[:, None] * stride + dims[None, :], mask=mask, other=0.0)


@triton.jit
def _first_key(row, STRIDE: tl.constexpr, BLOCK: tl.constexpr, WINDOW: tl.constexpr, BN: tl.constexpr):
    """The tile's first key that a query from `row` on may see, as a multiple of BN."""
    first = 0
    if WINDOW > 0:
        first = tl.maximum(row - WINDOW - BLOCK + 2, 0) // STRIDE // BN * BN
    return first


@triton.jit
def _end_of_keys(row, TK, STRIDE: tl.constexpr, BLOCK: tl.constexpr):
    """One past the last key that query `row` sees."""
    return tl.minimum(TK, tl.maximum(row - BLOCK + 1 + STRIDE, 0) // STRIDE)


@triton.jit
def _visible(distance, rows, keys, T, TK, WINDOW: tl.constexpr):
    seen = (distance >= 0) & (rows < T) & (keys < TK)
    if WINDOW > 0:
        seen = seen & (distance < WINDOW)
    return seen


@triton.jit
def forward_kernel(
    Q, K, V, BIAS, FAR, FAR_LSE, OUT, LSE,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t,
    H, G, T, TK, scale,
    STRIDE: tl.constexpr, BLOCK: tl.constexpr, WINDOW: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_FAR: tl.constexpr,
    D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """OUT [B, H, T, D] and LSE [B, H, T]; a query that sees no key gets 0 and -inf.

    BIAS [H, WINDOW] is added by distance. FAR [B, H, T - WINDOW, D] and FAR_LSE are the attention of the queries from
    WINDOW on to the keys before the window, which is merged.
    """
    block, bh = tl.program_id(0), tl.program_id(1)
    b, h = bh // H, bh % H
    rows = block * BM + tl.arange(0, BM)
    dims = tl.arange(0, BD)
    q = _tile(Q + b.to(tl.int64) * q_b + h * q_h, rows, dims, q_t, T, D)
    key = K + b.to(tl.int64) * k_b + (h // G) * k_h
    value = V + b.to(tl.int64) * v_b + (h // G) * v_h
    top = tl.full([BM], -float("inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    context = tl.zeros([BM, BD], tl.float32)
    first = _first_key(block * BM, STRIDE, BLOCK, WINDOW, BN)
    end = _end_of_keys(block * BM + BM - 1, TK, STRIDE, BLOCK)
    for start in range(first, end, BN):
        keys = start + tl.arange(0, BN)
        k = _tile(key, keys, dims, k_t, TK, D)
        v = _tile(value, keys, dims, v_t, TK, D)
        distance = rows[:, None] - (keys * STRIDE + BLOCK - 1)[None, :]
        seen = _visible(distance, rows[:, None], keys[None, :], T, TK, WINDOW)
        scores = tl.dot(q, tl.trans(k)) * scale
        if HAS_BIAS:
            scores += tl.load(BIAS + h * WINDOW + distance, mask=seen, other=0.0)
        scores = tl.where(seen, scores, -float("inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        finite = tl.where(new_top == -float("inf"), 0.0, new_top)
        p = tl.exp(scores - finite[:, None])
        shrink = tl.exp(top - finite)
        total = total * shrink + tl.sum(p, 1)
        context = context * shrink[:, None] + tl.dot(p.to(v.dtype), v)
        top = new_top
    lse = tl.where(total > 0, top + tl.log(tl.where(total > 0, total, 1.0)), -float("inf"))
    context = context / tl.where(total > 0, total, 1.0)[:, None]
    if HAS_FAR:
        far_rows = rows - WINDOW
        far_lse = tl.load(
            FAR_LSE + bh.to(tl.int64) * (T - WINDOW) + far_rows,
            mask=(far_rows >= 0) & (rows < T),
            other=-float("inf"),
        )
        far = _tile(FAR + bh.to(tl.int64) * (T - WINDOW) * D, far_rows, dims, D, T - WINDOW, D).to(tl.float32)
        # Every real query sees itself in the band, so that `larger` is finite.
        larger = tl.where(rows < T, tl.maximum(lse, far_lse), 0.0)
        both = larger + tl.log(tl.exp(lse - larger) + tl.exp(far_lse - larger))
        context = context * tl.exp(lse - both)[:, None] + far * tl.exp(far_lse - both)[:, None]
        lse = both
    out = OUT + bh.to(tl.int64) * T * D
    mask = (rows < T)[:, None] & (dims < D)[None, :]
    tl.store(out + rows.to(tl.int64)[:, None] * D + dims[None, :], context.to(OUT.dtype.element_ty), mask=mask)
    tl.store(LSE + bh.to(tl.int64) * T + rows, lse, mask=rows < T)


@triton.jit
def query_gradient_kernel(
    Q, K, V, BIAS, OUT, LSE, DOUT, FAR_DQ, DQ, DELTA, DBIAS,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t,
    H, G, T, TK, scale,
    STRIDE: tl.constexpr, BLOCK: tl.constexpr, WINDOW: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_FAR: tl.constexpr,
    D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """DQ [B, H, T, D], DELTA [B, H, T] = sum of OUT * DOUT, and DBIAS [B, H, T, WINDOW], each query's share.

    OUT and LSE may be those of a softmax over more keys than these. DBIAS is written where a key exists.
    """
    block, bh = tl.program_id(0), tl.program_id(1)
    b, h = bh // H, bh % H
    rows = block * BM + tl.arange(0, BM)
    dims = tl.arange(0, BD)
    q = _tile(Q + b.to(tl.int64) * q_b + h * q_h, rows, dims, q_t, T, D)
    here = bh.to(tl.int64) * T
    dout = _tile(DOUT + here * D, rows, dims, D, T, D)
    out = _tile(OUT + here * D, rows, dims, D, T, D)
    delta = tl.sum(dout.to(tl.float32) * out.to(tl.float32), 1)
    tl.store(DELTA + here + rows, delta, mask=rows < T)
    lse = tl.load(LSE + here + rows, mask=rows < T, other=0.0)
    key = K + b.to(tl.int64) * k_b + (h // G) * k_h
    value = V + b.to(tl.int64) * v_b + (h // G) * v_h
    gradient = tl.zeros([BM, BD], tl.float32)
    first = _first_key(block * BM, STRIDE, BLOCK, WINDOW, BN)
    end = _end_of_keys(block * BM + BM - 1, TK, STRIDE, BLOCK)
    for start in range(first, end, BN):
        keys = start + tl.arange(0, BN)
        k = _tile(key, keys, dims, k_t, TK, D)
        v = _tile(value, keys, dims, v_t, TK, D)
        distance = rows[:, None] - (keys * STRIDE + BLOCK - 1)[None, :]
        seen = _visible(distance, rows[:, None], keys[None, :], T, TK, WINDOW)
        scores = tl.dot(q, tl.trans(k)) * scale
        if HAS_BIAS:
            scores += tl.load(BIAS + h * WINDOW + distance, mask=seen, other=0.0)
        p = tl.where(seen, tl.exp(scores - lse[:, None]), 0.0)
        ds = p * (tl.dot(dout, tl.trans(v)) - delta[:, None])
        if HAS_BIAS:
            tl.store(DBIAS + (here + rows.to(tl.int64))[:, None] * WINDOW + distance, ds, mask=seen)
        gradient += tl.dot(ds.to(k.dtype), k)
    gradient *= scale
    if HAS_FAR:
        gradient += _tile(FAR_DQ + bh.to(tl.int64) * (T - WINDOW) * D, rows - WINDOW, dims, D, T - WINDOW, D)
    mask = (rows < T)[:, None] & (dims < D)[None, :]
    tl.store(DQ + (here + rows.to(tl.int64))[:, None] * D + dims[None, :], gradient.to(DQ.dtype.element_ty), mask=mask)


@triton.jit
def key_gradient_kernel(
    Q, K, V, BIAS, LSE, DELTA, DOUT, DK, DV,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t,
    H, G, T, TK, slab, scale,
    STRIDE: tl.constexpr, BLOCK: tl.constexpr, WINDOW: tl.constexpr, HAS_BIAS: tl.constexpr,
    D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """DK, DV [slabs, B, H, TK, D] in float32: what one query head's rows [n slab, (n + 1) slab) add."""
    block, part, bh = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    b, h = bh // H, bh % H
    keys = block * BN + tl.arange(0, BN)
    dims = tl.arange(0, BD)
    k = _tile(K + b.to(tl.int64) * k_b + (h // G) * k_h, keys, dims, k_t, TK, D)
    v = _tile(V + b.to(tl.int64) * v_b + (h // G) * v_h, keys, dims, v_t, TK, D)
    query = Q + b.to(tl.int64) * q_b + h * q_h
    here = bh.to(tl.int64) * T
    dk = tl.zeros([BN, BD], tl.float32)
    dv = tl.zeros([BN, BD], tl.float32)
    first = tl.maximum((block * BN * STRIDE + BLOCK - 1) // BM * BM, part * slab)
    end = tl.minimum(T, (part + 1) * slab)
    if WINDOW > 0:
        end = tl.minimum(end, (block * BN + BN - 1) * STRIDE + BLOCK - 1 + WINDOW)
    for start in range(first, end, BM):
        rows = start + tl.arange(0, BM)
        q = _tile(query, rows, dims, q_t, T, D)
        dout = _tile(DOUT + here * D, rows, dims, D, T, D)
        lse = tl.load(LSE + here + rows, mask=rows < T, other=0.0)
        delta = tl.load(DELTA + here + rows, mask=rows < T, other=0.0)
        distance = rows[None, :] - (keys * STRIDE + BLOCK - 1)[:, None]
        seen = _visible(distance, rows[None, :], keys[:, None], T, TK, WINDOW)
        scores = tl.dot(k, tl.trans(q)) * scale
        if HAS_BIAS:
            scores += tl.load(BIAS + h * WINDOW + distance, mask=seen, other=0.0)
        p = tl.where(seen, tl.exp(scores - lse[None, :]), 0.0)
        dv += tl.dot(p.to(dout.dtype), dout)
        ds = p * (tl.dot(v, tl.trans(dout)) - delta[None, :])
        dk += tl.dot(ds.to(q.dtype), q)
    offset = (part.to(tl.int64) * tl.num_programs(2) + bh) * TK * D
    place = offset + keys.to(tl.int64)[:, None] * D + dims[None, :]
    mask = (keys < TK)[:, None] & (dims < D)[None, :]
    tl.store(DK + place, dk * scale, mask=mask)
    tl.store(DV + place, dv, mask=mask)


@triton.jit
def importance_kernel(
    Q, K, LSE, IMPORTANCE,
    q_b, q_h, q_t, k_b, k_h, k_t,
    H, G, T, TK, J, scale,
    STRIDE: tl.constexpr, BLOCK: tl.constexpr, PER_BLOCK: tl.constexpr, PER_WINDOW: tl.constexpr,
    D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BJ: tl.constexpr,
):  # fmt: skip
    """IMPORTANCE [B, H / G, T, J] of J selection blocks (NSA, eq. 9 and 10), from the compressed keys and their LSE.

    Block j counts key PER_BLOCK j + u - (PER_WINDOW - 1) as often as pairs (m, n) have the sum u.
    """
    block, tile, group = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    groups = H // G
    b, kv = group // groups, group % groups
    rows = block * BM + tl.arange(0, BM)
    js = tile * BJ + tl.arange(0, BJ)
    dims = tl.arange(0, BD)
    key = K + b.to(tl.int64) * k_b + kv * k_h
    importance = tl.zeros([BM, BJ], tl.float32)
    SPAN: tl.constexpr = PER_BLOCK + PER_WINDOW - 1
    # The first key that the tile counts ends behind the last query: nothing to add.
    is_future = (tile * BJ * PER_BLOCK - PER_WINDOW + 1) * STRIDE + BLOCK - 1 > block * BM + BM - 1
    heads = tl.where(is_future, 0, G)
    for g in range(heads):
        h = kv * G + g
        q = _tile(Q + b.to(tl.int64) * q_b + h * q_h, rows, dims, q_t, T, D)
        lse = tl.load(LSE + (b.to(tl.int64) * H + h) * T + rows, mask=rows < T, other=0.0)
        for u in tl.static_range(SPAN):
            index = js * PER_BLOCK + u - (PER_WINDOW - 1)
            k = _tile(key, index, dims, k_t, TK, D)
            ends = index * STRIDE + BLOCK - 1
            seen = (
                (index >= 0)[None, :] & (index < TK)[None, :] & (rows[:, None] >= ends[None, :]) & (rows < T)[:, None]
            )
            p = tl.where(seen, tl.exp(tl.dot(q, tl.trans(k)) * scale - lse[:, None]), 0.0)
            importance += p * min(min(u + 1, SPAN - u), min(PER_BLOCK, PER_WINDOW))
    place = (group.to(tl.int64) * T + rows.to(tl.int64))[:, None] * J + js[None, :]
    tl.store(IMPORTANCE + place, importance, mask=(rows < T)[:, None] & (js < J)[None, :])
