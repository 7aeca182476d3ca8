"""What the sections of a study must agree on, beside the names by which they refer to each other.

Every check raises ValueError with the key, the value and the remedy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from effllm.data.instructions.settings import SyntheticInstructionSource
from effllm.data.settings import SyntheticStream, TrainedTokenizer
from effllm.fields import repeated
from effllm.models.sources import RandomSource
from effllm.study.models import PretrainedSource

if TYPE_CHECKING:
    from effllm.study.study import Study


def check_names(study: Study) -> None:
    """Ids are directories, which some file systems do not tell apart by case; labels tell rows apart."""
    for section, entries in study:
        if isinstance(entries, dict):
            by_lower: dict[str, str] = {}
            for id in entries:
                other = by_lower.setdefault(id.lower(), id)
                if other != id:
                    raise ValueError(
                        f"{section}.{id}: it differs from {other!r} by case alone, and some file systems cannot hold "
                        "both: rename one"
                    )
    for name, table in study.tables.defined().items():
        for labelled in table.labelled(study, f"tables.{name}"):
            _check_labels(*labelled)


def check_vocabularies(study: Study) -> None:
    """An embedding has a row for every id that its text, or its stream of random ids, holds."""
    for id, run in study.pretraining.items():
        rows, needed = run.architecture.vocab_size, vocabulary_of_stream(study, run.tokens)
        if rows is not None and needed is not None and rows < needed:
            raise ValueError(
                f"pretraining.{id}.architecture.vocab_size: {rows} rows are fewer than the {needed} ids of "
                f"{run.tokens!r}: raise it, or leave the key out"
            )
    for id, suite in study.finetuning.items():
        source = study.instructions[suite.instructions].source
        if not isinstance(source, SyntheticInstructionSource):
            continue
        for model in suite.models:
            rows = vocabulary_of_model(study, model)
            if rows is not None and rows < source.vocab_size:
                raise ValueError(
                    f"finetuning.{id}.models: {model!r} has {rows} ids, fewer than the {source.vocab_size} of "
                    f"{suite.instructions!r}: lower instructions.{suite.instructions}.source.vocab_size"
                )


def check_curves(study: Study) -> None:
    """Random tokens have no held-out text to score on the way."""
    for id, run in study.pretraining.items():
        if run.held_out_curve and isinstance(study.tokens[run.tokens], SyntheticStream):
            raise ValueError(
                f"pretraining.{id}.held_out_curve: {run.tokens!r} are random tokens, on which no loss means anything: "
                "leave the key out, or name a stream of text"
            )


def check_chats(study: Study) -> None:
    """A model that is prompted in a chat template has a tokenizer that may carry one."""
    for id, model in study.models.items():
        if model.chat is None:
            continue
        source = model.source
        if isinstance(source, RandomSource):
            raise ValueError(f"models.{id}.chat: a model of random weights has no tokenizer: leave the key out")
        if isinstance(source, PretrainedSource):
            tokens = study.tokens[study.pretraining[source.run].tokens]
            name = None if isinstance(tokens, SyntheticStream) else tokens.tokenizer
            if name and isinstance(study.tokenizers[name], TrainedTokenizer):
                raise ValueError(
                    f"models.{id}.chat: the tokenizer {name!r} is trained by this study and has no chat template: "
                    "leave the key out, or test a fine-tuned model"
                )


def check_lengths(study: Study) -> None:
    """No model is asked to read further than its positions reach."""
    for name, table in study.tables.defined().items():
        for model, key, tokens in table.lengths(study):
            shape = study.architecture_of(model)
            if shape is not None and shape.longest_sequence is not None and tokens > shape.longest_sequence:
                raise ValueError(
                    f"{key}: {tokens} tokens exceed the {shape.longest_sequence} positions of {model!r} "
                    f"(tables.{name}): lower it, or take the model out of the table"
                )


def vocabulary_of_stream(study: Study, stream: str) -> int | None:
    """Number of token ids of a stream; None for a tokenizer of the hub, which has not been fetched yet."""
    tokens = study.tokens[stream]
    if isinstance(tokens, SyntheticStream):
        return tokens.vocab_size
    tokenizer = study.tokenizers[tokens.tokenizer]
    return tokenizer.vocab_size if isinstance(tokenizer, TrainedTokenizer) else None


def vocabulary_of_model(study: Study, model: str) -> int | None:
    """Rows of a model's embedding; None where only its files know."""
    shape = study.architecture_of(model)
    if shape is None or shape.vocab_size is not None:
        return shape.vocab_size if shape else None
    source = study.models[model].source
    return (
        vocabulary_of_stream(study, study.pretraining[source.run].tokens)
        if isinstance(source, PretrainedSource)
        else None
    )


def _check_labels(where: str, section: str, ids: Iterable[str], entries: Mapping[str, object]) -> None:
    labels = {id: getattr(entries[id], "label", None) or id for id in ids}
    if twice := repeated(labels.values()):
        same = [id for id, label in labels.items() if label == twice[0]]
        raise ValueError(
            f"{where}: {' and '.join(map(repr, same[:2]))} are both called {twice[0]!r:.60}: change "
            f"{section}.{same[-1]}.label, by which readers tell them apart"
        )
