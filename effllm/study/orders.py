"""What orders of windows and the runs that take them must agree on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from effllm.data.order.settings import LossMeasure, ScoreMeasure
from effllm.data.settings import EmbeddedCorpusSource, EncodedStream
from effllm.fields import require

if TYPE_CHECKING:
    from effllm.study.study import Study


def check_orders(study: Study) -> None:
    """Raise ValueError for an order of what no run reads so, or by a run that cannot tell."""
    for id, order in study.orders.items():
        require(f"orders.{id}.tokens", order.tokens, study.tokens)
        if not isinstance(study.tokens[order.tokens], EncodedStream):
            raise ValueError(
                f"orders.{id}.tokens: {order.tokens!r} are random tokens, none of which is harder than another: name "
                "a stream of text"
            )
        corpus = study.encoded(order.tokens).corpus
        if isinstance(order.by, ScoreMeasure) and isinstance(study.corpora[corpus].source, EmbeddedCorpusSource):
            raise ValueError(
                f"orders.{id}.by.kind: the documents of {corpus!r} have no score, as its source is embedded: name "
                "another measure, or a stream of a corpus with scores"
            )
        if isinstance(order.by, LossMeasure):
            _check_reference(study, id, order.by)
    for id, run in study.pretraining.items():
        if run.order is None:
            continue
        require(f"pretraining.{id}.order.by", run.order.by, study.orders)
        order = study.orders[run.order.by]
        for key in ("tokens", "sequence_length"):
            if getattr(run, key) != getattr(order, key):
                raise ValueError(
                    f"pretraining.{id}.order.by: {run.order.by!r} has {key} {getattr(order, key)!r}, the run "
                    f"{getattr(run, key)!r}: name an order of the same, or add one"
                )
    _check_circles(study)


def _check_reference(study: Study, id: str, by: LossMeasure) -> None:
    where, order = f"orders.{id}.by.run", study.orders[id]
    require(where, by.run, study.pretraining)
    run = study.pretraining[by.run]
    require(f"pretraining.{by.run}.tokens", run.tokens, study.tokens)
    own, theirs = study.encoded(order.tokens).tokenizer, getattr(study.tokens[run.tokens], "tokenizer", None)
    if theirs is None:
        raise ValueError(f"{where}: {by.run!r} trains on random tokens and keeps no weights: name a run on text")
    if theirs != own:
        raise ValueError(
            f"{where}: {by.run!r} has the tokenizer {theirs!r}, the windows of {order.tokens!r} are in ids of {own!r}: "
            "name a run with the same tokenizer"
        )
    longest = run.architecture.longest_sequence
    if longest is not None and longest < order.sequence_length:
        raise ValueError(
            f"{where}: {by.run!r} has {longest} positions, a window has {order.sequence_length} tokens: name a run "
            "with more, or shorten sequence_length"
        )


def _check_circles(study: Study) -> None:
    """An order by the loss of a run that itself waits for that order would never begin."""
    for start in study.orders:
        seen, id = [start], start
        while isinstance(by := study.orders[id].by, LossMeasure):
            reference = study.pretraining[by.run].order
            if reference is None:
                break
            id = reference.by
            if id in seen:
                raise ValueError(
                    f"orders.{id}.by.run: {by.run!r} is trained in an order that waits for its own loss: take a "
                    "reference run in random order"
                )
            seen.append(id)
