"""The stage that samples a corpus: filtered, drawn, deduplicated, and split into training and held-out documents.

Payload: `train-00000.parquet`, ... and `held_out-00000.parquet`, ... in FineWeb-Edu's ten columns, and `corpus.json`:

    seen             documents read from the source, up to the token budget
    dropped          of those, by reason: language, int_score, empty (no text), not_sampled, duplicate (of a text),
                     near_duplicate (a training document too like a held-out one), contained (a held-out document
                     within a training document); `effllm.data.near_duplicates` has the rule
    splits           documents, tokens (column token_count) and utf8_bytes of `train` and `held_out`
    budget_met       whether the training documents drawn, near duplicates included, reached maximum_tokens; null
                     without a budget
    overlap          what the two sides still have in common (`HeldOutGrams.overlap`)
"""

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from effllm.data.near_duplicates import HeldOutGrams
from effllm.data.sampling import Fate, SeenTexts, fates, until_budget
from effllm.data.shards import ShardWriter
from effllm.data.sources import Source, open_source
from effllm.errors import UserError
from effllm.results.data import CorpusSummary, DocumentCounts, Overlap
from effllm.runtime.progress import Progress
from effllm.runtime.stage import Job, main
from effllm.study.data import Corpus

SPLITS = {"train": Fate.TRAIN, "held_out": Fate.HELD_OUT}
_DROPPED = tuple(fate for fate in Fate if fate not in SPLITS.values())
# Shards between drawing and comparing, deleted as they are read: the disk holds the corpus once, and one of them.
_DRAWN_DOCUMENTS = 50_000
_BATCH_DOCUMENTS = 1000


def build(job: Job) -> None:
    """Sample the corpus that `job.spec` describes."""
    config = job.config(Corpus)
    source = open_source(config.source, job.files, job.scratch / "hub")
    job.write(sample(source, config, job.output, job.scratch))


def sample(source: Source, config: Corpus, output: Path, scratch: Path) -> CorpusSummary:
    """Write the shards of the sample to `output` and return what they hold.

    Documents are read once and in order, and wait in `scratch` until it is known what is held out; memory holds a few
    batches of them and the index of the held-out ones. `UserError` if either split ends up empty.
    """
    if config.minimum_int_score > 0 and not source.scored:
        raise UserError(
            f"minimum_int_score is {config.minimum_int_score}, but {source.label} carries no educational scores: "
            "set minimum_int_score to 0 or take a scored source."
        )
    tally = _Tally()
    drawn = scratch / "drawn"
    shutil.rmtree(drawn, ignore_errors=True)
    drawn.mkdir(parents=True)
    try:
        held_out = _draw(source, config, tally, drawn, scratch)
        _separate(held_out, config, tally, drawn, output, source.label)
    finally:
        shutil.rmtree(drawn)
    _require_documents(tally, source, config)
    return tally.summary(config.maximum_tokens, held_out.overlap())


def _draw(source: Source, config: Corpus, tally: "_Tally", drawn: Path, scratch: Path) -> HeldOutGrams:
    """Write both sides as filters, draws and exact texts decide them to `drawn`, and index the held-out one."""
    held_out = HeldOutGrams()
    with ExitStack() as stack:
        seen = stack.enter_context(closing(SeenTexts(scratch / "seen.sqlite3")))
        writers = {split: stack.enter_context(closing(ShardWriter(drawn, split, _DRAWN_DOCUMENTS))) for split in SPLITS}
        bar = stack.enter_context(Progress(source.total, unit="documents", label=f"sampling {source.label}"))
        for batch in _read_ahead(source.batches()):
            fate = fates(batch, config, seen)
            if config.maximum_tokens is not None:
                taken = until_budget(batch, fate, config.maximum_tokens - tally.drawn_tokens)
                batch, fate = batch.slice(0, taken), fate[:taken]
            tally.draw(batch, fate)
            for split, writer in writers.items():
                part = batch.filter(pa.array(fate == SPLITS[split]))
                writer.write(part)
                if split == "held_out":
                    held_out.add(part.column("text"))
            bar.update(len(fate))
            if config.maximum_tokens is not None and tally.drawn_tokens >= config.maximum_tokens:
                break
    return held_out


def _separate(held_out: HeldOutGrams, config: Corpus, tally: "_Tally", drawn: Path, output: Path, label: str) -> None:
    """Move what was drawn from `drawn` to the shards of `output`, without documents that are near to the other side."""
    decide = {"train": held_out.leaves, "held_out": held_out.which_contained}
    # Training first: what stays there decides which held-out documents lie within it.
    for split, fate in (("train", Fate.NEAR_DUPLICATE), ("held_out", Fate.CONTAINED)):
        total = tally.documents(SPLITS[split])
        with ExitStack() as stack:
            writer = stack.enter_context(closing(ShardWriter(output, split, config.shard_documents)))
            bar = stack.enter_context(Progress(total, unit="documents", label=f"comparing {split} of {label}"))
            for batch in _consume(drawn, split):
                leaving = decide[split](batch.column("text"))
                kept = batch.filter(pa.array(~leaving))
                tally.leave(SPLITS[split], fate, int(leaving.sum()))
                tally.keep(split, kept)
                writer.write(kept)
                bar.update(len(leaving))


def _consume(directory: Path, split: str) -> Iterator[pa.RecordBatch]:
    """Yield the documents of one split of `directory` in order, and delete each shard once it was read."""
    for shard in sorted(directory.glob(f"{split}-*.parquet")):
        with pq.ParquetFile(shard) as file:
            yield from file.iter_batches(batch_size=_BATCH_DOCUMENTS)
        shard.unlink()


class _Tally:
    """Counts of documents by fate, and of tokens and bytes by split."""

    def __init__(self) -> None:
        self.fates = np.zeros(len(Fate), dtype=np.int64)
        self.drawn_tokens = 0
        self.tokens = dict.fromkeys(SPLITS, 0)
        self.utf8_bytes = dict.fromkeys(SPLITS, 0)

    def draw(self, batch: pa.RecordBatch, fate: np.ndarray) -> None:
        self.fates += np.bincount(fate, minlength=len(Fate))
        self.drawn_tokens += int(batch.column("token_count").to_numpy()[fate == Fate.TRAIN].sum())

    def leave(self, before: Fate, after: Fate, documents: int) -> None:
        self.fates[before] -= documents
        self.fates[after] += documents

    def keep(self, split: str, batch: pa.RecordBatch) -> None:
        if batch.num_rows:
            self.tokens[split] += pc.sum(batch.column("token_count")).as_py()
            self.utf8_bytes[split] += pc.sum(pc.binary_length(batch.column("text"))).as_py()

    def documents(self, fate: Fate) -> int:
        return int(self.fates[fate])

    def dropped(self) -> dict[str, int]:
        return {fate.name.lower(): self.documents(fate) for fate in _DROPPED}

    def summary(self, maximum_tokens: int | None, overlap: Overlap) -> CorpusSummary:
        return CorpusSummary(
            seen=int(self.fates.sum()),
            dropped=self.dropped(),
            splits={
                split: DocumentCounts(
                    documents=self.documents(fate), tokens=self.tokens[split], utf8_bytes=self.utf8_bytes[split]
                )
                for split, fate in SPLITS.items()
            },
            budget_met=None if maximum_tokens is None else self.drawn_tokens >= maximum_tokens,
            overlap=overlap,
        )


def _read_ahead(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Yield from `batches`, the next one being read and decoded by a thread meanwhile."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        pending = pool.submit(next, batches, None)
        while (batch := pending.result()) is not None:
            pending = pool.submit(next, batches, None)
            yield batch


def _require_documents(tally: _Tally, source: Source, config: Corpus) -> None:
    train, held_out = (tally.documents(fate) for fate in SPLITS.values())
    near, contained = tally.documents(Fate.NEAR_DUPLICATE), tally.documents(Fate.CONTAINED)
    if train and held_out:
        return
    if not tally.fates.any():
        raise UserError(f"{source.label} hold no document: name files or a split that do.")
    if not train + held_out + near + contained:
        dropped = ", ".join(f"{reason} {count}" for reason, count in tally.dropped().items())
        raise UserError(
            f"nothing of {source.label} is left: of {int(tally.fates.sum())} documents the filters dropped all "
            f"({dropped}); loosen languages, minimum_int_score or sample_fraction."
        )
    empty, change, alike = ("held-out", "raise", contained) if train else ("training", "lower", near)
    chosen = held_out + contained
    if alike:
        raise UserError(
            f"the {empty} split of {source.label} is empty: all of its {alike} documents are near duplicates of the "
            f"other side's; {change} held_out_fraction {config.held_out_fraction} or take more varied documents."
        )
    raise UserError(
        f"the {empty} split of {source.label} is empty: held_out_fraction {config.held_out_fraction} of "
        f"{train + near + chosen} documents chose {chosen}; {change} it or take more documents."
    )


if __name__ == "__main__":
    main("corpus", build)
