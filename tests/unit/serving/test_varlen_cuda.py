"""Attention over sequences of different lengths, and an engine that attends so, on a GPU."""

from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from effllm.models.greedy import decode_greedily
from effllm.serving.dispatch import play
from effllm.serving.engines.continuous import ContinuousEngine
from effllm.serving.engines.transformers import TransformersEngine
from effllm.serving.engines.varlen import _by_sequence
from effllm.serving.trace import Trace, TracedRequest
from tests.unit.serving.conftest import WORDS, small_model

pytestmark = pytest.mark.gpu
# A result in 16 bits is rounded to 8 bits.
BOUND = 5e-3


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(12, 2, 128), (12, 12, 128), (4, 1, 64)])
def test_the_last_query_of_a_sequence_sees_all_of_its_keys(heads: int, kv_heads: int, dim: int) -> None:
    """Prompts, a token after a cache, and a part of a prompt after the part before it; against float32."""
    lengths_q, lengths_k = [5, 1, 1, 70, 129], [5, 33, 600, 200, 129]
    generator = torch.Generator("cuda").manual_seed(dim)
    shapes = [(sum(lengths_q), heads, dim), *[(sum(lengths_k), kv_heads, dim)] * 2]
    query, key, value = (torch.randn(s, device="cuda", generator=generator).bfloat16() for s in shapes)
    ends = [torch.tensor([0, *each], device="cuda").cumsum(0).int() for each in (lengths_q, lengths_k)]
    found = _by_sequence(query, key, value, (ends[0], ends[1]), (max(lengths_q), max(lengths_k)), dim**-0.5)
    parts = zip(
        *(t.float().split(n) for t, n in ((query, lengths_q), (key, lengths_k), (value, lengths_k))), strict=True
    )
    for got, (q, k, v) in zip(found.split(lengths_q), parts, strict=True):
        seen = torch.ones(len(q), len(k), dtype=torch.bool, device="cuda").tril(len(k) - len(q))
        q, k, v = (each.transpose(0, 1) for each in (q, k, v))
        wanted = scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True).transpose(0, 1)
        assert (got.float() - wanted).norm() < BOUND * wanted.norm()


def test_an_engine_that_attends_so_says_what_the_model_says() -> None:
    """By forward passes and by CUDA graphs; weights are wide apart, so that few near ties are turned by rounding."""
    model: Any = small_model().to("cuda", torch.bfloat16)
    decode_greedily(model, None)
    prompts = [tuple(int(word) for word in torch.randint(WORDS, (length,))) for length in range(9, 40, 3)]
    trace = Trace(tuple(TracedRequest(number, None, prompt, 16) for number, prompt in enumerate(prompts)), 8)
    for graphs in (False, None):
        settings = TransformersEngine(
            kind="transformers", num_blocks=96, page_size=8, max_batch_tokens=64, flash_attention="varlen",
            cuda_graphs=graphs,
        )  # fmt: skip
        engine = ContinuousEngine(settings, model)
        alone = [engine.alone(request) for request in trace.requests]
        engine.start()
        try:
            played = play(engine, trace)
        finally:
            engine.stop()
        same = [completion.tokens == one for completion, one in zip(played.completions, alone, strict=True)]
        assert sum(same) > len(same) // 2
        model.set_attn_implementation("sdpa")
