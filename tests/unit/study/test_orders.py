"""An order that no run can follow is refused in one sentence with the key, the value and the remedy."""

from typing import Any

import pytest

from effllm.errors import UserError
from effllm.stages.graph import Graph
from effllm.study import parse_study

RUN = "paced-0.3m"
LOSS = {"kind": "loss", "run": "gqa-0.3m"}


def _set(study: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split("/")
    for key in parents:
        study = study[key]
    study[last] = value


CASES = {
    "no such order": ({f"pretraining/{RUN}/order/by": "compresion"}, ["order.by", "'compresion'", "'compression'"]),
    "share of nothing": ({f"pretraining/{RUN}/order/share": 0.0}, [f"pretraining.{RUN}.order.share", "0"]),
    "share above one": ({f"pretraining/{RUN}/order/share": 1.5}, [f"pretraining.{RUN}.order.share", "1.5"]),
    "pacing from nothing": (
        {f"pretraining/{RUN}/order/pacing": {"start": 0.0, "full_at": 0.5}},
        [f"pretraining.{RUN}.order.pacing.start"],
    ),
    "pacing for longer than the run": (
        {f"pretraining/{RUN}/order/pacing": {"start": 0.1, "full_at": 2.0}},
        [f"pretraining.{RUN}.order.pacing.full_at", "2.0"],
    ),
    "direction": ({f"pretraining/{RUN}/order/first": "esy"}, [f"pretraining.{RUN}.order.first", "'esy'", "easy"]),
    "more segments than steps": (
        {f"pretraining/{RUN}/order/segments": 121},
        [f"pretraining.{RUN}", "segments 121 exceeds the 120 steps", "lower it"],
    ),
    "windows of another length": (
        {"orders/compression/sequence_length": 64},
        [f"pretraining.{RUN}.order.by", "sequence_length 64, the run 128"],
    ),
    "another stream": (
        {
            "tokens/other": {"corpus": "python-docs", "tokenizer": "python-docs-2k"},
            "orders/compression/tokens": "other",
        },
        [f"pretraining.{RUN}.order.by", "tokens 'other', the run 'python-docs'"],
    ),
    "no such stream": (
        {"orders/compression/tokens": "python"},
        ["orders.compression.tokens", "'python'", "python-docs"],
    ),
    "scores of an embedded corpus": (
        {"orders/scored": {"tokens": "python-docs", "sequence_length": 128, "by": {"kind": "score"}}},
        ["orders.scored.by.kind", "'python-docs' have no score", "name another measure"],
    ),
    "random tokens": (
        {
            "tokens/noise": {"kind": "synthetic", "vocab_size": 64, "tokens": 4096},
            "orders/noise": {"tokens": "noise", "sequence_length": 64, "by": {"kind": "length"}},
        },
        ["orders.noise.tokens", "'noise' are random tokens", "name a stream of text"],
    ),
    "no such measure": ({"orders/compression/by": {"kind": "zip"}}, ["orders.compression.by", "'zip'", "compression"]),
    "level": ({"orders/compression/by/level": 10}, ["orders.compression.by", "level", "10"]),
    "loss of a run that is not there": (
        {"orders/compression/by": LOSS | {"run": "gqa-03m"}},
        ["orders.compression.by.run", "'gqa-03m'", "gqa-0.3m"],
    ),
    "loss of a run with another tokenizer": (
        {
            "tokenizers/other": {"kind": "train", "corpus": "python-docs", "vocab_size": 512},
            "tokens/other": {"corpus": "python-docs", "tokenizer": "other"},
            "pretraining/mqa-0.3m/tokens": "other",
            "orders/compression/by": LOSS | {"run": "mqa-0.3m"},
        },
        ["orders.compression.by.run", "'mqa-0.3m' has the tokenizer 'other'", "'python-docs-2k'", "same tokenizer"],
    ),
    "loss of a run with fewer positions": (
        {
            "pretraining/mqa-0.3m/architecture/max_position_embeddings": 64,
            "pretraining/mqa-0.3m/sequence_length": 64,
            "orders/compression/by": LOSS | {"run": "mqa-0.3m"},
        },
        ["orders.compression.by.run", "64 positions", "128 tokens"],
    ),
    "loss of a run that waits for it": (
        {"orders/compression/by": LOSS | {"run": RUN}},
        ["orders.compression.by.run", f"'{RUN}'", "waits for its own loss", "random order"],
    ),
}


@pytest.mark.parametrize(("changes", "parts"), CASES.values(), ids=CASES)
def test_a_wrong_order_is_refused(tiny: dict[str, Any], changes: dict[str, Any], parts: list[str]) -> None:
    for path, value in changes.items():
        _set(tiny, path, value)
    with pytest.raises(UserError) as refused:
        parse_study(tiny, "tiny")
    assert all(part in str(refused.value) for part in parts), refused.value


def test_an_order_is_a_node_between_its_stream_and_its_runs(tiny: dict[str, Any]) -> None:
    without = Graph(parse_study(tiny, "tiny")).spec("pretrain", "gqa-0.3m")
    tiny["orders"]["loss"] = tiny["orders"]["compression"] | {"by": LOSS}
    tiny["orders"]["length"] = tiny["orders"]["compression"] | {"by": {"kind": "length"}}
    graph = Graph(parse_study(tiny, "tiny"))
    names = {order: sorted(graph.parents("order", order)) for order in graph.ids("order")}
    assert names == {"compression": ["corpus", "tokens"], "length": ["tokens"], "loss": ["model", "tokens"]}
    assert graph.parents("order", "loss")["model"] == "results/pretrain/gqa-0.3m/manifest.json"
    assert graph.parents("pretrain", RUN)["order"] == "results/order/compression/manifest.json"
    assert "order" not in graph.parents("pretrain", "gqa-0.3m")
    # A run in random order has the spec that it had before there were any.
    assert graph.spec("pretrain", "gqa-0.3m") == without and "order" not in without["config"]
    tiny["pretraining"]["explicit"] = tiny["pretraining"]["gqa-0.3m"] | {"order": None}
    assert Graph(parse_study(tiny, "tiny")).spec("pretrain", "explicit") == without
