"""The stage that samples a corpus: filtered, drawn, deduplicated, and split into training and held-out documents.

Payload: `train-00000.parquet`, ... and `held_out-00000.parquet`, ... in FineWeb-Edu's ten columns, and `corpus.json`:

    seen             documents read from the source, up to the token budget
    dropped          of those, by reason: language, int_score, empty (no text), not_sampled, duplicate
    splits           documents, tokens (column token_count) and utf8_bytes of `train` and `held_out`
    budget_met       whether maximum_tokens was reached; null without a budget
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from effllm.data.sampling import Fate, SeenTexts, fates, until_budget
from effllm.data.shards import ShardWriter
from effllm.data.sources import Source, open_source
from effllm.errors import UserError
from effllm.progress import Progress
from effllm.stage import Job, main
from effllm.study.data import Corpus

SPLITS = {"train": Fate.TRAIN, "held_out": Fate.HELD_OUT}
_DROPPED = tuple(fate for fate in Fate if fate not in SPLITS.values())


def build(job: Job) -> None:
    """Sample the corpus that `job.spec` describes."""
    config = job.config(Corpus)
    source = open_source(config.source, job.files, job.scratch / "hub")
    job.write_json("corpus.json", sample(source, config, job.output, job.scratch))


def sample(source: Source, config: Corpus, output: Path, scratch: Path) -> dict[str, Any]:
    """Write the shards of the sample to `output` and return the content of `corpus.json`.

    Documents pass through once and in order; memory holds a few batches of them. `UserError` if either split ends
    up empty.
    """
    if config.minimum_int_score > 0 and not source.scored:
        raise UserError(
            f"minimum_int_score is {config.minimum_int_score}, but {source.label} carries no educational scores: "
            "set minimum_int_score to 0 or take a scored source."
        )
    tally = _Tally()
    with ExitStack() as stack:
        seen = stack.enter_context(closing(SeenTexts(scratch / "seen.sqlite3")))
        writers = {
            split: stack.enter_context(closing(ShardWriter(output, split, config.shard_documents))) for split in SPLITS
        }
        bar = stack.enter_context(Progress(source.total, unit="documents", label=f"sampling {source.label}"))
        for batch in _read_ahead(source.batches()):
            fate = fates(batch, config, seen)
            if config.maximum_tokens is not None:
                taken = until_budget(batch, fate, config.maximum_tokens - tally.tokens["train"])
                batch, fate = batch.slice(0, taken), fate[:taken]
            tally.count(fate)
            for split, writer in writers.items():
                part = batch.filter(pa.array(fate == SPLITS[split]))
                tally.add(split, part)
                writer.write(part)
            bar.update(len(fate))
            if config.maximum_tokens is not None and tally.tokens["train"] >= config.maximum_tokens:
                break
    _require_documents(tally, source, config)
    return tally.summary(config.maximum_tokens)


class _Tally:
    """Counts of documents by fate, and of tokens and bytes by split."""

    def __init__(self) -> None:
        self.fates = np.zeros(len(Fate), dtype=np.int64)
        self.tokens = dict.fromkeys(SPLITS, 0)
        self.utf8_bytes = dict.fromkeys(SPLITS, 0)

    def count(self, fate: np.ndarray) -> None:
        self.fates += np.bincount(fate, minlength=len(Fate))

    def add(self, split: str, batch: pa.RecordBatch) -> None:
        if batch.num_rows:
            self.tokens[split] += pc.sum(batch.column("token_count")).as_py()
            self.utf8_bytes[split] += pc.sum(pc.binary_length(batch.column("text"))).as_py()

    def documents(self, fate: Fate) -> int:
        return int(self.fates[fate])

    def dropped(self) -> dict[str, int]:
        return {fate.name.lower(): self.documents(fate) for fate in _DROPPED}

    def summary(self, maximum_tokens: int | None) -> dict[str, Any]:
        return {
            "seen": int(self.fates.sum()),
            "dropped": self.dropped(),
            "splits": {
                split: {
                    "documents": self.documents(fate),
                    "tokens": self.tokens[split],
                    "utf8_bytes": self.utf8_bytes[split],
                }
                for split, fate in SPLITS.items()
            },
            "budget_met": None if maximum_tokens is None else self.tokens["train"] >= maximum_tokens,
        }


def _read_ahead(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Yield from `batches`, the next one being read and decoded by a thread meanwhile."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        pending = pool.submit(next, batches, None)
        while (batch := pending.result()) is not None:
            pending = pool.submit(next, batches, None)
            yield batch


def _require_documents(tally: _Tally, source: Source, config: Corpus) -> None:
    train, held_out = (tally.documents(fate) for fate in SPLITS.values())
    if train and held_out:
        return
    if not train and not held_out:
        dropped = ", ".join(f"{reason} {count}" for reason, count in tally.dropped().items())
        raise UserError(
            f"nothing of {source.label} is left: of {int(tally.fates.sum())} documents the filters dropped all "
            f"({dropped}); loosen languages, minimum_int_score or sample_fraction."
        )
    empty, change = ("held-out", "raise") if train else ("training", "lower")
    raise UserError(
        f"the {empty} split of {source.label} is empty: held_out_fraction {config.held_out_fraction} of "
        f"{train + held_out} documents chose {held_out}; {change} it or take more documents."
    )


if __name__ == "__main__":
    main("corpus", build)
