"""Conversations as token sequences whose loss covers the answers alone. Runs before training; needs no torch.

    set_template(tokenizer, encoding, model)              the template; saved with the tokenizer
    encoded = encode(read_samples(dir, "train"), tokenizer, encoding)
    encoded.sequences                                     list[TrainingSequence], in a fixed order: the training set
    encoded.counts                                        what was left out and cut, for the artifact

`effllm.data.instructions.batches` turns sequences into batches.

What is learned: all that a model would write after the prompt that asks for an answer, to the token that ends the
turn (`effllm.data.instructions.templates`; the end-of-text token where the template writes none). All other labels are
-100. What follows the last turn's end is left off. A sample that is longer than `sequence_length` loses the end of its
last answer, its end token included, so that nobody learns to stop in the middle.

`counts` of an encoded split:

    samples, sequences, tokens
    answer_tokens        labels that count
    truncated            samples that were cut at sequence_length
    dropped              samples that were left out, by reason: too_long (no answer token within sequence_length; an
                         error unless the study says drop), special_token (a text that spells one of the tokenizer's
                         special tokens out, which would end a turn early), refused_by_template (roles that it does
                         not allow, an answer that it leaves out)
    not_learned          tokens of answers that no label covers, by reason: those of dropped samples; truncated;
                         hidden_by_template (reasoning that it leaves out of earlier turns); joined_to_prompt (tokens
                         that hold text of the prompt too)
    other_prompts        answers that come after another text than the prompt that asks for them
    image_tokens         tokens that images take, where samples have one
"""

import re
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from tokenizers import Tokenizer

from effllm.data.instructions.pictures import Picture
from effllm.data.instructions.samples import Message, Sample
from effllm.data.instructions.settings import Encoding
from effllm.data.instructions.templates import RefusedByTemplateError, Rendered, Renderer
from effllm.errors import UserError
from effllm.runtime.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""The label that the loss leaves out (torch.nn.functional.cross_entropy's default)."""
DROPPED = ("too_long", "special_token", "refused_by_template")
NOT_LEARNED = (*DROPPED, "truncated", "hidden_by_template", "joined_to_prompt")
_BATCH_SAMPLES = 256
# Tokenizers of reasoning models may call these special; an answer has them, and they end no turn.
_REASONING_MARKS = ("<think>", "</think>")


@dataclass(frozen=True)
class EncodedSample:
    """One sample: token ids and labels, int32 (tokens,). The first label is always -100."""

    id: str
    input_ids: np.ndarray
    labels: np.ndarray
    picture: Picture | None = None

    def __len__(self) -> int:
        return len(self.input_ids)


class ImageMarks(Protocol):
    """How a model's images stand in its text: `ImageProcessing` has it of a model.

    marker: what is written before the first question, with one token of the id `token_id` in it, in whose place come
    as many as `tokens` says of an image's width and height.
    """

    marker: str
    token_id: int

    def tokens(self, width: int, height: int, /) -> int: ...


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

    `counts`: see the module.
    """

    sequences: list[TrainingSequence]
    counts: dict[str, Any]


def encode(
    samples: Iterable[Sample],
    tokenizer: "PreTrainedTokenizerBase",
    encoding: Encoding,
    label: str = "samples",
    marks: ImageMarks | None = None,
) -> Encoded:
    """Encode `samples` in their order with the chat template that `tokenizer` has; those with images by `marks`.

    `UserError` if a prompt fills `sequence_length` and the study does not say to drop such samples, if nothing is
    left, or if the tokenizer cannot say where its tokens stand in the text. `label` names the progress.
    """
    if not tokenizer.is_fast:
        raise UserError(
            f"{type(tokenizer).__name__} cannot say which characters a token covers, so the loss cannot be held to "
            "the answers; use a model with a fast tokenizer (tokenizer.json)."
        )
    encoder = _Encoder(tokenizer)
    kept: list[EncodedSample] = []
    tally = _Tally()
    with Progress(unit="samples", label=f"encoding {label}") as bar:
        rendered = _rendered(samples, tokenizer, encoder, tally, marks)
        while batch := list(islice(rendered, _BATCH_SAMPLES)):
            for (sample, _), text in zip(batch, encoder.encode(batch, tally), strict=True):
                whole = text if marks is None else _with_image(text, sample.picture, marks)
                cut = _cut(whole, encoding.sequence_length)
                lost = _labels(whole) - _labels(cut)
                if _labels(cut):
                    kept.append(cut)
                    tally.truncated += len(cut) < len(whole)
                    tally.not_learned["truncated"] += lost
                elif encoding.too_long == "error":
                    raise UserError(
                        f"sample {sample.id} ({_beginning(sample)}) leaves no room for its answer: its prompt fills "
                        f"sequence_length {encoding.sequence_length}; raise sequence_length, or set too_long to drop."
                    )
                else:
                    tally.drop("too_long", lost)
            bar.update(len(batch))
    if not kept:
        reasons = ", ".join(f"{reason} {count}" for reason, count in tally.dropped.items())
        remedy = "raise sequence_length or choose another template"
        if tally.spelled_out:
            remedy = f"take {tally.spelled_out!r}, a special token of the tokenizer, out of the texts"
            remedy += ", or name the images that it stands for in source.columns.image" if marks is None else ""
        raise UserError(f"nothing of {label} is left to train on ({reasons}); {remedy}.")
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
            "truncated": tally.truncated,
            "dropped": dict(tally.dropped),
            "not_learned": dict(tally.not_learned),
            "other_prompts": tally.other_prompts,
            **({} if marks is None else {"image_tokens": sum(_image_tokens(sample, marks) for sample in kept)}),
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


class _Tally:
    """What is left out, by reason."""

    def __init__(self) -> None:
        self.truncated = 0
        self.other_prompts = 0
        self.spelled_out = ""
        self.dropped: Counter[str] = Counter(dict.fromkeys(DROPPED, 0))
        self.not_learned: Counter[str] = Counter(dict.fromkeys(NOT_LEARNED, 0))

    def drop(self, reason: str, answer_tokens: int) -> None:
        """Count a sample that is left out."""
        self.dropped[reason] += 1
        self.not_learned[reason] += answer_tokens


class _Encoder:
    """Encodes rendered conversations and labels the tokens of their answers."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase"):
        self._eos = tokenizer.eos_token_id
        self._backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        # The template has written the special tokens, and post-processors may trim the space from tokens' offsets: a
        # token that is nothing but space would have no place in the text.
        self._backend.post_processor = None
        self._backend.no_truncation()
        self._backend.no_padding()

    def count(self, text: str) -> int:
        """Tokens of a text alone."""
        return len(self._backend.encode(text, add_special_tokens=False).ids)

    def encode(self, batch: list[tuple[Sample, Rendered]], tally: _Tally) -> Iterator[EncodedSample]:
        """Token ids and labels, to the end of each last answer."""
        encoded = self._backend.encode_batch([rendered.text for _, rendered in batch], add_special_tokens=False)
        for (sample, rendered), encoding in zip(batch, encoded, strict=True):
            tokens = np.array(encoding.ids, dtype=np.int32)
            is_answer, joined = _answer_tokens(rendered, np.array(encoding.offsets).reshape(-1, 2))
            tally.not_learned["joined_to_prompt"] += joined
            tally.not_learned["hidden_by_template"] += sum(map(self.count, rendered.hidden))
            tally.other_prompts += rendered.other_prompts
            yield self._labelled(sample.id, tokens, is_answer, rendered.is_ended)

    def _labelled(self, id: str, tokens: np.ndarray, is_answer: np.ndarray, is_ended: bool) -> EncodedSample:
        """Labels for the tokens up to the end of the last answer, an end-of-text token added if none ends it."""
        last = int(np.flatnonzero(is_answer)[-1]) if is_answer.any() else -1
        tokens, is_answer = tokens[: last + 1], is_answer[: last + 1]
        if last >= 0 and not is_ended and self._eos is not None:
            tokens, is_answer = np.append(tokens, np.int32(self._eos)), np.append(is_answer, True)
        labels = np.where(is_answer, tokens, np.int32(IGNORED))
        labels[:1] = IGNORED
        return EncodedSample(id, tokens, labels)


def _rendered(
    samples: Iterable[Sample],
    tokenizer: "PreTrainedTokenizerBase",
    encoder: _Encoder,
    tally: _Tally,
    marks: ImageMarks | None,
) -> Iterator[tuple[Sample, Rendered]]:
    renderer = Renderer(tokenizer)
    special = _special_tokens(tokenizer)
    for sample in samples:
        reason = None
        texts = map(_without_reasoning_marks, sample.messages)
        if found := next(filter(None, map(special.search, texts)), None) if special else None:
            reason, tally.spelled_out = "special_token", tally.spelled_out or found.group()
        else:
            try:
                rendered = renderer.render(sample if marks is None else sample.marked(marks.marker))
            except RefusedByTemplateError:
                reason = "refused_by_template"
        if reason is None:
            yield sample, rendered
        else:
            tally.drop(reason, sum(encoder.count(m.content) for m in sample.messages if m.role == "assistant"))


def _special_tokens(tokenizer: "PreTrainedTokenizerBase") -> re.Pattern[str] | None:
    tokens = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return re.compile("|".join(map(re.escape, sorted(tokens)))) if tokens else None


def _without_reasoning_marks(message: Message) -> str:
    if message.role != "assistant":
        return message.content
    return "".join(re.split("|".join(_REASONING_MARKS), message.content))


def _answer_tokens(rendered: Rendered, offsets: np.ndarray) -> tuple[np.ndarray, int]:
    """bool (tokens,): the tokens of the answers; and how many hold a part of an answer and are not learned.

    `offsets` (tokens, 2) are the characters [start, end) that a token covers; one that a normalizer has put in covers
    none and belongs to what follows. A token that begins in the prompt belongs to the answer if only space precedes
    the answer in it: a tokenizer may join the space before a word to the word, and the model has to write both.
    """
    starts, ends = offsets[:, 0], offsets[:, 1]
    is_answer, joined = np.zeros(len(offsets), dtype=bool), 0
    for first, last in rendered.answers:
        inside = (starts < last) & ((ends > first) | (starts >= first))
        for index in np.flatnonzero(inside & (starts < first)):
            inside[index] = rendered.text[starts[index] : first].isspace()
            joined += not inside[index]
        is_answer |= inside
    return is_answer, joined


def _with_image(sample: EncodedSample, picture: Picture | None, marks: ImageMarks) -> EncodedSample:
    """The sample with all tokens of its image in the place of the one that marks it."""
    assert picture is not None
    (places,) = np.nonzero(sample.input_ids == marks.token_id)
    if len(places) != 1:
        raise UserError(
            f"sample {sample.id} has {len(places)} image tokens in its text, where the template should leave the one "
            "before the question: choose another encoding.template."
        )
    repeats = np.ones(len(sample), dtype=np.int64)
    repeats[places] = marks.tokens(picture.width, picture.height)
    return EncodedSample(sample.id, sample.input_ids.repeat(repeats), sample.labels.repeat(repeats), picture)


def _image_tokens(sample: EncodedSample, marks: ImageMarks) -> int:
    return int((sample.input_ids == marks.token_id).sum())


def _cut(sample: EncodedSample, length: int) -> EncodedSample:
    return replace(sample, input_ids=sample.input_ids[:length], labels=sample.labels[:length])


def _labels(sample: EncodedSample) -> int:
    """How many labels count."""
    return int((sample.labels != IGNORED).sum())


def _beginning(sample: Sample, characters: int = 60) -> str:
    prompt = next(message.content for message in sample.messages if message.role == "user")
    return repr(prompt if len(prompt) <= characters else f"{prompt[:characters]}...")
