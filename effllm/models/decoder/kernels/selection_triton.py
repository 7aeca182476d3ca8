"""Triton kernels of attention to selected blocks of keys, one choice of blocks per query and group of heads.

Queries are [B, H, T, D], keys and values [B, H / G, T, D], contiguous; BLOCKS [B, H / G, T, S] holds the blocks of LB
keys that a query attends to, each at most once. Keys behind the query are left out. Tiles have GP >= G rows per query,
the heads of its group. Softmax is kept in float32; no kernel uses atomics.
"""

import triton
import triton.language as tl


@triton.jit
def _heads(pointer, query, T, heads, dims, mask, D: tl.constexpr):
    """Rows of [H, T, D] at (heads, query), those without `mask` 0."""
    place = (heads.to(tl.int64) * T + query)[:, None] * D + dims[None, :]
    return tl.load(pointer + place, mask=mask[:, None] & (dims < D)[None, :], other=0.0)


@triton.jit
def _keys(pointer, rows, T, dims, D: tl.constexpr):
    mask = (rows < T)[:, None] & (dims < D)[None, :]
    return tl.load(pointer + rows.to(tl.int64)[:, None] * D + dims[None, :], mask=mask, other=0.0)


@triton.jit
def forward_kernel(
    Q, K, V, BLOCKS, OUT, LSE, H, G, T, S, scale,
    LB: tl.constexpr, GP: tl.constexpr, D: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """OUT [B, H, T, D] and LSE [B, H, T], a query and a group at a time."""
    query, group = tl.program_id(0), tl.program_id(1)
    heads, dims = tl.arange(0, GP), tl.arange(0, BD)
    # Heads of all batch rows are numbered through, and so are the groups.
    head = group * G + heads
    used = heads < G
    q = _heads(Q, query, T, head, dims, used, D)
    key, value = K + group.to(tl.int64) * T * D, V + group.to(tl.int64) * T * D
    top = tl.full([GP], -float("inf"), tl.float32)
    total = tl.zeros([GP], tl.float32)
    context = tl.zeros([GP, BD], tl.float32)
    for s in range(S):
        start = tl.load(BLOCKS + (group.to(tl.int64) * T + query) * S + s).to(tl.int32) * LB
        if start <= query:
            rows = start + tl.arange(0, LB)
            k, v = _keys(key, rows, T, dims, D), _keys(value, rows, T, dims, D)
            scores = tl.where((rows <= query)[None, :], tl.dot(q, tl.trans(k)) * scale, -float("inf"))
            # A block that is not all future has a visible key, so that `new_top` is finite.
            new_top = tl.maximum(top, tl.max(scores, 1))
            p = tl.exp(scores - new_top[:, None])
            shrink = tl.exp(top - new_top)
            total = total * shrink + tl.sum(p, 1)
            context = context * shrink[:, None] + tl.dot(p.to(v.dtype), v)
            top = new_top
    some = tl.where(total > 0, total, 1.0)
    place = (head.to(tl.int64) * T + query)[:, None] * D + dims[None, :]
    mask = used[:, None] & (dims < D)[None, :]
    tl.store(OUT + place, (context / some[:, None]).to(OUT.dtype.element_ty), mask=mask)
    tl.store(LSE + head.to(tl.int64) * T + query, tl.where(total > 0, top + tl.log(some), -float("inf")), mask=used)


@triton.jit
def query_gradient_kernel(
    Q, K, V, BLOCKS, OUT, LSE, DOUT, DQ, DELTA, H, G, T, S, scale,
    LB: tl.constexpr, GP: tl.constexpr, D: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """DQ [B, H, T, D] and DELTA [B, H, T] = sum of OUT * DOUT."""
    query, group = tl.program_id(0), tl.program_id(1)
    heads, dims = tl.arange(0, GP), tl.arange(0, BD)
    head = group * G + heads
    used = heads < G
    q = _heads(Q, query, T, head, dims, used, D)
    dout = _heads(DOUT, query, T, head, dims, used, D)
    out = _heads(OUT, query, T, head, dims, used, D)
    delta = tl.sum(dout.to(tl.float32) * out.to(tl.float32), 1)
    tl.store(DELTA + head.to(tl.int64) * T + query, delta, mask=used)
    lse = tl.load(LSE + head.to(tl.int64) * T + query, mask=used, other=0.0)
    key, value = K + group.to(tl.int64) * T * D, V + group.to(tl.int64) * T * D
    gradient = tl.zeros([GP, BD], tl.float32)
    for s in range(S):
        start = tl.load(BLOCKS + (group.to(tl.int64) * T + query) * S + s).to(tl.int32) * LB
        if start <= query:
            rows = start + tl.arange(0, LB)
            k, v = _keys(key, rows, T, dims, D), _keys(value, rows, T, dims, D)
            p = tl.where((rows <= query)[None, :], tl.exp(tl.dot(q, tl.trans(k)) * scale - lse[:, None]), 0.0)
            ds = p * (tl.dot(dout, tl.trans(v)) - delta[:, None])
            gradient += tl.dot(ds.to(k.dtype), k)
    place = (head.to(tl.int64) * T + query)[:, None] * D + dims[None, :]
    mask = used[:, None] & (dims < D)[None, :]
    tl.store(DQ + place, (gradient * scale).to(DQ.dtype.element_ty), mask=mask)


@triton.jit
def segment_kernel(
    Q, K, V, LSE, DELTA, DOUT, READERS, BLOCK, BEGIN, END, DK, DV, H, G, T, R, segments, scale,
    LB: tl.constexpr, GP: tl.constexpr, QN: tl.constexpr, D: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """DK, DV [B H / G, segments, LB, D] in float32: what the readers BEGIN to END of a block add.

    READERS [B H / G, R] are queries, sorted by the block that they read. A block with many readers has several
    segments, so that one that all queries read takes no longer than others.
    """
    segment, group = tl.program_id(0), tl.program_id(1)
    item = group.to(tl.int64) * segments + segment
    begin, end = tl.load(BEGIN + item), tl.load(END + item)
    if begin < end:
        dims = tl.arange(0, BD)
        keys = tl.load(BLOCK + item) * LB + tl.arange(0, LB)
        k = _keys(K + group.to(tl.int64) * T * D, keys, T, dims, D)
        v = _keys(V + group.to(tl.int64) * T * D, keys, T, dims, D)
        dk = tl.zeros([LB, BD], tl.float32)
        dv = tl.zeros([LB, BD], tl.float32)
        pairs = tl.arange(0, QN * GP)
        head = group * G + pairs % GP
        for start in range(begin, end, QN):
            reader = start + pairs // GP
            used = (pairs % GP < G) & (reader < end)
            query = tl.load(READERS + group.to(tl.int64) * R + reader, mask=reader < end, other=0)
            row = head.to(tl.int64) * T + query
            mask = used[:, None] & (dims < D)[None, :]
            q = tl.load(Q + row[:, None] * D + dims[None, :], mask=mask, other=0.0)
            dout = tl.load(DOUT + row[:, None] * D + dims[None, :], mask=mask, other=0.0)
            lse = tl.load(LSE + row, mask=used, other=0.0)
            delta = tl.load(DELTA + row, mask=used, other=0.0)
            seen = (keys[:, None] <= query[None, :]) & used[None, :]
            p = tl.where(seen, tl.exp(tl.dot(k, tl.trans(q)) * scale - lse[None, :]), 0.0)
            dv += tl.dot(p.to(dout.dtype), dout)
            ds = p * (tl.dot(v, tl.trans(dout)) - delta[None, :])
            dk += tl.dot(ds.to(q.dtype), q)
        place = (item * LB + tl.arange(0, LB))[:, None] * D + dims[None, :]
        mask = (dims < D)[None, :] & (keys < T)[:, None]
        tl.store(DK + place, dk * scale, mask=mask)
        tl.store(DV + place, dv, mask=mask)


@triton.jit
def sum_kernel(
    DK, DV, FIRST, LAST, OUT_K, OUT_V, T, segments, blocks,
    LB: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """OUT_K, OUT_V [B H / G, T, D]: each block's segments FIRST to LAST added up in order, ROWS keys at a time."""
    block, part, group = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    dims, within = tl.arange(0, BD), part * ROWS + tl.arange(0, ROWS)
    keys = block * LB + within
    mask = (keys < T)[:, None] & (dims < D)[None, :]
    dk = tl.zeros([ROWS, BD], tl.float32)
    dv = tl.zeros([ROWS, BD], tl.float32)
    first = tl.load(FIRST + group * blocks + block)
    last = tl.load(LAST + group * blocks + block)
    for segment in range(first, last):
        place = ((group.to(tl.int64) * segments + segment) * LB + within)[:, None] * D + dims[None, :]
        dk += tl.load(DK + place, mask=mask, other=0.0)
        dv += tl.load(DV + place, mask=mask, other=0.0)
    out = (group.to(tl.int64) * T + keys)[:, None] * D + dims[None, :]
    tl.store(OUT_K + out, dk.to(OUT_K.dtype.element_ty), mask=mask)
    tl.store(OUT_V + out, dv.to(OUT_V.dtype.element_ty), mask=mask)
