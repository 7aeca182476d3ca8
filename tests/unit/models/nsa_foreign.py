"""Native sparse attention without causality by another implementation, native-sparse-attention-pytorch 0.2.3 (MIT).

    pip install native-sparse-attention-pytorch==0.2.3 && python tests/unit/models/nsa_foreign.py

in an environment of its own writes nsa_foreign.json: the cases, their outputs, and the queries that compare. Both draw
weights and inputs from `draws`. Of the package:

- all branches share keys and values, so the ones of ours get the same weights
- a key of memory takes part in compression: with the first number of every query at 1 and its own at -10,000 it is
  never seen; its rotary embedding is switched off
- its window is |i - j| <= w, ours |i - j| <= w / 2; where w does not divide the length, its last queries see padding
- selected are the best blocks, without a claim of the query's own block: the queries whose own block is among them
  compare. With all blocks selected all compare
"""

import json
from pathlib import Path

import numpy as np

FILE = Path(__file__).with_name("nsa_foreign.json")
WIDTH, DIM, HEADS = 16, 4, 2
CASES = [
    {"tokens": 16, "block": 4, "selected": 4, "window": 4, "seed": 0},
    {"tokens": 16, "block": 4, "selected": 2, "window": 2, "seed": 1},
    {"tokens": 64, "block": 8, "selected": 3, "window": 8, "seed": 2},
    {"tokens": 24, "block": 4, "selected": 3, "window": 6, "seed": 3},
]


def draws(case: dict[str, int]) -> dict[str, np.ndarray]:
    """Hidden states, whose first number is 1, and weights: the first number of queries is 1 and that of keys 0."""
    drawn = np.random.default_rng(case["seed"])
    block, inner = case["block"], HEADS * DIM
    hidden = drawn.standard_normal((1, case["tokens"], WIDTH))
    hidden[..., 0] = 1
    query, key, value = (drawn.standard_normal((inner, WIDTH)) * 0.5 for _ in range(3))
    query[::DIM], key[::DIM] = 0, 0
    query[::DIM, 0] = 1
    return {
        "hidden": hidden,
        "query": query,
        "key": key,
        "value": value,
        "gate": drawn.standard_normal((3 * HEADS, WIDTH)) * 0.5,
        "output": drawn.standard_normal((WIDTH, inner)) * 0.5,
        **{f"{name}_positions": drawn.standard_normal((block, DIM)) * 0.5 for name in ("key", "value")},
        **{f"{name}_up": drawn.standard_normal((DIM, block * DIM)) * 0.5 for name in ("key", "value")},
        "value_down": drawn.standard_normal((DIM, DIM)),
        # Compressed keys are 0 where queries are 1, as keys are.
        "key_down": drawn.standard_normal((DIM, DIM)) * np.array([0, 1, 1, 1])[:, None],
    }


def _foreign(case: dict[str, int]) -> tuple[list, list[int]]:
    import torch
    from einops.layers.torch import Rearrange
    from native_sparse_attention_pytorch import SparseAttention

    block, linear = case["block"], torch.nn.Linear
    compress = torch.nn.Sequential(
        Rearrange("b h w n d -> b h w (n d)"),
        linear(block * DIM, DIM, bias=False),
        torch.nn.GELU(),
        linear(DIM, DIM, bias=False),
    )
    layer = SparseAttention(
        dim=WIDTH,
        dim_head=DIM,
        heads=HEADS,
        sliding_window_size=case["window"],
        compress_block_size=block,
        compress_block_sliding_stride=block,
        selection_block_size=block,
        num_selected_blocks=case["selected"],
        causal=False,
        norm=False,
        compress_mlp=compress,
        strategy_combine_mlp=linear(WIDTH, 3 * HEADS, bias=False),
    ).double()
    layer.rotary_emb.rotate_queries_with_cached_keys = lambda queries, keys: (queries, keys)
    weights = {name: torch.from_numpy(array) for name, array in draws(case).items()}
    with torch.no_grad():
        layer.to_qkv.weight.copy_(torch.cat([weights[name] for name in ("query", "key", "value")]))
        layer.to_strategy_combine[0].weight.copy_(weights["gate"])
        layer.combine_heads.weight.copy_(weights["output"])
        layer.compress_mem_kv[0, :, :, 0] = -1e4
        for name, network in (("key", layer.k_compress), ("value", layer.v_compress)):
            network[1].weight.copy_(weights[f"{name}_up"])
            network[3].weight.copy_(weights[f"{name}_down"])
            getattr(layer, f"{name[0]}_intrablock_positions").copy_(weights[f"{name}_positions"].expand(HEADS, -1, -1))
        chosen: list[torch.Tensor] = []
        plain = torch.Tensor.topk

        def topk(scores, count, **options):
            found = plain(scores, count, **options)
            chosen.append(found.indices)
            return found

        torch.Tensor.topk = topk
        output = layer(weights["hidden"])
    torch.Tensor.topk = plain
    own = torch.arange(case["tokens"])[:, None] // block
    compares = (chosen[0][0] == own).any(dim=-1).all(dim=0)
    return output[0].tolist(), compares.nonzero().flatten().tolist()


if __name__ == "__main__":
    found = []
    for case in CASES:
        output, compares = _foreign(case)
        found.append(case | {"compares": compares, "output": [[round(x, 7) for x in output[i]] for i in compares]})
    FILE.write_text(json.dumps({"package": "native-sparse-attention-pytorch 0.2.3", "cases": found}) + "\n")
