"""The stage that prepares instruction data: conversations in one form, without duplicates, split by their prompts.

Payload: `train.parquet` and `held_out.parquet` (columns id, messages), and `instructions.json`:

    seen             rows read from the source, up to the budget
    dropped          of those, by reason: not_text, unknown_role, role_order, empty_message (`effllm.data.
                     instructions.rows` says what they mean), duplicate (all messages equal an earlier row's)
    splits           samples, answers (assistant turns) and answer_utf8_bytes of `train` and `held_out`
    budget_met       whether maximum_samples was reached; null without a budget

An id is the first 64 bits of the prompt's hash, so that it depends on nothing but the prompt; a prompt that comes again
with another answer is `<id>#2`. The prompt is all that precedes the first answer, and decides the side of the split.

Of samples with images the id is that of the image's pixels, so that no image is on both sides; another question about
it is `<id>#2`. Their files are in `images.bin`; dropped counts what `pictures.UNUSABLE` names too, unusable names the
first rows, and images counts them.
"""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import xxhash

from effllm.data.images.reading import UnusableImageError
from effllm.data.instructions.advice import described, remedy_for
from effllm.data.instructions.pictures import UNUSABLE, NoPicture, Picture, PictureFile, PictureWriter
from effllm.data.instructions.rows import REASONS, UnusableRowError, messages_of
from effllm.data.instructions.samples import SPLITS, Message, Sample, SampleWriter
from effllm.data.instructions.settings import Instructions, SyntheticInstructionSource
from effllm.data.instructions.sources import RowSource, open_source
from effllm.data.instructions.synthetic import write_synthetic
from effllm.data.sampling import SPLIT_SALT
from effllm.errors import UserError
from effllm.results.data import InstructionsSummary, SampleCounts
from effllm.runtime.progress import progress
from effllm.runtime.stage import Job, main

# Rows whose image cannot be used, to look at.
_NAMED = 20


def build(job: Job) -> None:
    """Prepare the instruction data that `job.spec` describes."""
    config = job.config(Instructions)
    if isinstance(config.source, SyntheticInstructionSource):
        write_synthetic(job, config.source)
        return
    source = open_source(config.source, job.files, job.scratch / "hub")
    job.write(prepare(source, config, job.output))


def prepare(source: RowSource, config: Instructions, output: Path) -> InstructionsSummary:
    """Write both splits to `output` and return what they hold.

    Rows pass through once and in order. `UserError` if either split ends up empty.
    """
    has_images = source.columns.image is not None
    reasons = (*REASONS, *(UNUSABLE if has_images else ()), "duplicate")
    dropped: Counter[str] = Counter(dict.fromkeys(reasons, 0))
    names: list[str] = []
    answers: dict[str, list[int]] = {split: [0, 0] for split in SPLITS}
    seen, unusable, remedy = 0, "", ""
    # The configuration demands it of everything but synthetic samples, which have no rows.
    assert config.held_out_fraction is not None
    with ExitStack() as stack:
        writers = {split: stack.enter_context(closing(SampleWriter(output, split, has_images))) for split in SPLITS}
        pictures = stack.enter_context(PictureWriter(output)) if has_images else None
        identify = _Identify()
        for row, picture in progress(source.rows(), unit="rows", label=f"reading {source.label}"):
            seen += 1
            try:
                messages, marks = messages_of(row, source.columns)
            except UnusableRowError as error:
                dropped[str(error)] += 1
                unusable = unusable or f"has {described(row, source.columns.names())}"
                remedy = remedy or remedy_for(row, source.columns)
                continue
            kept = None
            if pictures is not None:
                assert picture is not None
                try:
                    kept = pictures.write(NoPicture("several") if marks > 1 else picture)
                except UnusableImageError as error:
                    dropped[str(error)] += 1
                    names.append(f"row {seen - 1}{_named(picture)}: {error}")
                    unusable = unusable or f"is {names[0]}"
                    remedy = remedy or "correct source.images, source.image_folder, source.columns.image or the data"
                    continue
            sample = identify(messages, kept)
            if sample is None:
                dropped["duplicate"] += 1
                continue
            split = split_of(sample.id, config.held_out_fraction)
            writers[split].write(sample)
            for text in _answers(messages):
                answers[split][0] += 1
                answers[split][1] += len(text.encode())
            if writers["train"].count == config.maximum_samples:
                break
        counts = {split: writer.count for split, writer in writers.items()}
    _require_samples(counts, seen, dropped, (unusable, remedy), source, config)
    of_images: dict[str, Any] = {} if pictures is None else {"images": pictures.count, "unusable": names[:_NAMED]}
    if pictures is not None and pictures.odd:
        of_images["odd"] = dict(sorted(pictures.odd.items()))
    return InstructionsSummary(
        seen=seen,
        dropped=dict(dropped),
        splits={
            split: SampleCounts(samples=counts[split], answers=answers[split][0], answer_utf8_bytes=answers[split][1])
            for split in SPLITS
        },
        budget_met=None if config.maximum_samples is None else counts["train"] == config.maximum_samples,
        **of_images,
    )


def split_of(id: str, held_out_fraction: float) -> str:
    """The side of the split on which the sample with this id lies, whatever else is in the data."""
    return "held_out" if int(id.partition("#")[0], 16) < int(held_out_fraction * 2**64) else "train"


class _Identify:
    """Makes samples of conversations; None for one that was there before, of the same image if there is one."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()
        self._uses: Counter[str] = Counter()

    def __call__(self, messages: tuple[Message, ...], kept: tuple[bytes, Picture] | None) -> Sample | None:
        pixels, picture = kept or (b"", None)
        digest = _digest(messages) + pixels
        if digest in self._seen:
            return None
        self._seen.add(digest)
        first_answer = next(index for index, message in enumerate(messages) if message.role == "assistant")
        prompt = (pixels or _digest(messages[:first_answer]))[:8].hex()
        self._uses[prompt] += 1
        uses = self._uses[prompt]
        return Sample(prompt if uses == 1 else f"{prompt}#{uses}", messages, picture)


def _digest(messages: tuple[Message, ...]) -> bytes:
    """xxh3_128 of roles and texts, the same in every process, on every machine and in every version of the library."""
    text = json.dumps([[message.role, message.content] for message in messages], ensure_ascii=False)
    return xxhash.xxh3_128_digest(text.encode(), SPLIT_SALT)


def _named(picture: PictureFile | NoPicture) -> str:
    name = picture.named if isinstance(picture, NoPicture) else picture if isinstance(picture, Path) else ""
    return f" ({name})" if name else ""


def _answers(messages: tuple[Message, ...]) -> Iterator[str]:
    return (message.content for message in messages if message.role == "assistant")


def _require_samples(
    counts: dict[str, int],
    seen: int,
    dropped: Counter[str],
    first: tuple[str, str],
    source: RowSource,
    config: Instructions,
) -> None:
    """`UserError` where a split is empty; `first` says what is amiss with the first row, and what to do."""
    train, held_out = (counts[split] for split in SPLITS)
    if train and held_out:
        return
    if not train and not held_out:
        if not seen:
            raise UserError(f"{source.label} hold no row: name files or a split that do.")
        reasons = ", ".join(f"{reason} {count}" for reason, count in dropped.items() if count)
        unusable, remedy = first
        raise UserError(
            f"none of the {seen} rows of {source.label} can be used ({reasons}); the first {unusable}: {remedy}."
        )
    empty, change = ("held-out", "raise") if train else ("training", "lower")
    raise UserError(
        f"the {empty} split of {source.label} is empty: held_out_fraction {config.held_out_fraction} of "
        f"{train + held_out} samples chose {held_out}; {change} it or take more samples."
    )


if __name__ == "__main__":
    from effllm.stages.instructions import InstructionsStage

    main(InstructionsStage(), build)
