"""Conversations as token sequences whose loss covers the answers alone. Runs before training; needs no torch.

    set_template(tokenizer, encoding, model)              the template; saved with the tokenizer
    encoded = encode(read_samples(dir, "train"), tokenizer, encoding)
    encoded.sequences                                     list[TrainingSequence], in a fixed order: the training set
    encoded.counts                                        what was left out and cut, for the artifact

`effllm.data.instructions.batches` turns sequences into batches.

What is learned: the tokens of every assistant turn and the token that ends the turn (the template's end-of-turn
token; the end-of-text token where the template writes none). All other labels are -100. What follows the last
turn's end is left off. A sample that is longer than `sequence_length` loses the end of its last answer, its
end token included, so that nobody learns to stop in the middle.

Left out and counted: `too_long` (no answer token within `sequence_length`; an error unless the study says drop),
`special_token` (a text that spells one of the tokenizer's special tokens out, which would end a turn early) and
`refused_by_template` (roles that the template does not allow, an answer that it leaves out).
"""

import re
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from effllm.data.instructions.samples import Sample
from effllm.data.instructions.templates import RefusedByTemplateError, Rendered, render
from effllm.errors import UserError
from effllm.progress import Progress
from effllm.study.instructions import Encoding

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""The label that the loss leaves out (torch.nn.functional.cross_entropy's default)."""
DROPPED = ("too_long", "special_token", "refused_by_template")
_BATCH_SAMPLES = 256


@dataclass(frozen=True)
class EncodedSample:
    """One sample: token ids and labels, int32 (tokens,). The first label is always -100."""

    id: str
    input_ids: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True)
class TrainingSequence:
    """What fills one row of a batch: one sample, or several with packing; together at most `sequence_length` tokens."""

    samples: tuple[EncodedSample, ...]

    @property
    def ids(self) -> list[str]:
        """Ids of the samples in their order."""
        return [sample.id for sample in self.samples]

    def __len__(self) -> int:
        return sum(map(len, self.samples))


@dataclass(frozen=True)
class Encoded:
    """An encoded split.

    `counts` holds samples, sequences, tokens, answer_tokens (labels that count), truncated, and dropped by reason.
    """

    sequences: list[TrainingSequence]
    counts: dict[str, Any]


def encode(
    samples: Iterable[Sample], tokenizer: "PreTrainedTokenizerBase", encoding: Encoding, label: str = "samples"
) -> Encoded:
    """Encode `samples` in their order with the chat template that `tokenizer` has.

    `UserError` if a prompt fills `sequence_length` and the study does not say to drop such samples, if nothing is
    left, or if the tokenizer cannot say where its tokens stand in the text. `label` names the progress.
    """
    if not tokenizer.is_fast:
        raise UserError(
            f"{type(tokenizer).__name__} cannot say which characters a token covers, so the loss cannot be held to "
            "the answers; use a model with a fast tokenizer (tokenizer.json)."
        )
    kept: list[EncodedSample] = []
    dropped: Counter[str] = Counter(dict.fromkeys(DROPPED, 0))
    truncated = 0
    with Progress(unit="samples", label=f"encoding {label}") as bar:
        rendered = _rendered(samples, tokenizer, dropped)
        while batch := list(islice(rendered, _BATCH_SAMPLES)):
            for (sample, _), whole in zip(batch, _encode_batch(batch, tokenizer), strict=True):
                cut = _cut(whole, encoding.sequence_length)
                if _labels(cut):
                    kept.append(cut)
                    truncated += len(cut) < len(whole)
                elif not _labels(whole):
                    dropped["refused_by_template"] += 1
                elif encoding.too_long == "error":
                    raise UserError(
                        f"sample {sample.id} ({_beginning(sample)}) leaves no room for its answer: its prompt fills "
                        f"sequence_length {encoding.sequence_length}; raise sequence_length, or set too_long to drop."
                    )
                else:
                    dropped["too_long"] += 1
            bar.update(len(batch))
    if not kept:
        reasons = ", ".join(f"{reason} {count}" for reason, count in dropped.items())
        raise UserError(
            f"nothing of {label} is left to train on ({reasons}); raise sequence_length or choose another template."
        )
    sequences = (
        pack(kept, encoding.sequence_length) if encoding.packing else [TrainingSequence((sample,)) for sample in kept]
    )
    return Encoded(
        sequences,
        {
            "samples": len(kept),
            "sequences": len(sequences),
            "tokens": sum(map(len, kept)),
            "answer_tokens": sum(map(_labels, kept)),
            "truncated": truncated,
            "dropped": dict(dropped),
        },
    )


def pack(samples: list[EncodedSample], length: int) -> list[TrainingSequence]:
    """Whole samples together in sequences of at most `length` tokens: best fit, the longest first.

    Sequences come in the order of their first sample, and samples within one in theirs.
    """
    room: list[tuple[int, int]] = []
    members: list[list[int]] = []
    for index in sorted(range(len(samples)), key=lambda index: -len(samples[index])):
        size = len(samples[index])
        # The tightest room that suffices, of equal ones the oldest.
        place = bisect_left(room, (size, -1))
        if place == len(room):
            members.append([index])
            left, sequence = length - size, len(members) - 1
        else:
            free, sequence = room.pop(place)
            members[sequence].append(index)
            left = free - size
        insort(room, (left, sequence))
    ordered = sorted(sorted(sequence) for sequence in members)
    return [TrainingSequence(tuple(samples[index] for index in sequence)) for sequence in ordered]


def _rendered(
    samples: Iterable[Sample], tokenizer: "PreTrainedTokenizerBase", dropped: Counter[str]
) -> Iterator[tuple[Sample, Rendered]]:
    special = _special_tokens(tokenizer)
    for sample in samples:
        if special and any(special.search(message.content) for message in sample.messages):
            dropped["special_token"] += 1
            continue
        try:
            rendered = render(tokenizer, sample)
        except RefusedByTemplateError:
            dropped["refused_by_template"] += 1
            continue
        yield sample, rendered


def _special_tokens(tokenizer: "PreTrainedTokenizerBase") -> re.Pattern[str] | None:
    tokens = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return re.compile("|".join(map(re.escape, sorted(tokens)))) if tokens else None


def _encode_batch(
    batch: list[tuple[Sample, Rendered]], tokenizer: "PreTrainedTokenizerBase"
) -> Iterator[EncodedSample]:
    texts = [rendered.text for _, rendered in batch]
    # The template has written the special tokens, the begin-of-text token included.
    encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    added = set(tokenizer.added_tokens_decoder)
    for (sample, rendered), ids, offsets in zip(batch, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        tokens = np.array(ids, dtype=np.int32)
        is_answer = _answer_tokens(rendered, tokens, np.array(offsets), added)
        yield _labelled(sample.id, tokens, is_answer, tokenizer.eos_token_id, added)


def _answer_tokens(rendered: Rendered, tokens: np.ndarray, offsets: np.ndarray, added: set[int]) -> np.ndarray:
    """bool (tokens,): the tokens of the answers and those that end their turns.

    A token that begins in the template's text belongs to the answer if only space precedes the answer in it: a
    tokenizer may join the space before a word to the word, and the model has to write both.
    """
    starts, ends = offsets[:, 0], offsets[:, 1]
    is_answer = np.zeros(len(tokens), dtype=bool)
    for first, last in rendered.answers:
        inside = (ends > first) & (starts < last) & (ends > starts)
        for index in np.flatnonzero(inside & (starts < first)):
            inside[index] = rendered.text[starts[index] : first].isspace()
        is_answer |= inside
        following = int(np.searchsorted(starts, last))
        if inside.any() and following < len(tokens) and int(tokens[following]) in added:
            is_answer[following] = True
    return is_answer


def _labelled(id: str, tokens: np.ndarray, is_answer: np.ndarray, eos: int | None, added: set[int]) -> EncodedSample:
    """Labels for `tokens`, which end with the end of the last answer, an end-of-text token added if none is there."""
    last = int(np.flatnonzero(is_answer)[-1]) if is_answer.any() else -1
    tokens, is_answer = tokens[: last + 1], is_answer[: last + 1]
    if last >= 0 and int(tokens[last]) not in added and eos is not None:
        tokens, is_answer = np.append(tokens, np.int32(eos)), np.append(is_answer, True)
    labels = np.where(is_answer, tokens, np.int32(IGNORED))
    labels[:1] = IGNORED
    return EncodedSample(id, tokens, labels)


def _cut(sample: EncodedSample, length: int) -> EncodedSample:
    return EncodedSample(sample.id, sample.input_ids[:length], sample.labels[:length])


def _labels(sample: EncodedSample) -> int:
    """How many labels count."""
    return int((sample.labels != IGNORED).sum())


def _beginning(sample: Sample, characters: int = 60) -> str:
    prompt = next(message.content for message in sample.messages if message.role == "user")
    return repr(prompt if len(prompt) <= characters else f"{prompt[:characters]}...")
