"""The stage that samples a corpus: filtered, drawn, deduplicated, and split into training and held-out documents.

Payload: `train-00000.parquet`, ... and `held_out-00000.parquet`, ... in FineWeb-Edu's ten columns, and `corpus.json`:

    seen             documents read from the source, up to the token budget
    dropped          of those, by reason: language, int_score, empty (no text), not_sampled, duplicate (of a text),
                     near_duplicate (a training document too like a held-out one), contained (a held-out document
                     within a training document); `effllm.data.near_duplicates` has the rule; those of `filters`; and
                     clustered (near to one of its own side that stays), if near duplicates are to leave
    splits           documents, tokens (column token_count) and utf8_bytes of `train` and `held_out`
    budget_met       whether the training documents drawn reached maximum_tokens, near duplicates of held-out ones
                     included; null without a budget
    overlap          what the two sides still have in common (`HeldOutGrams.overlap`)
    near_duplicates  if they are to leave, how many there are, and a sample of pairs
"""

import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from effllm.data import arrays
from effllm.data.corpus_parts import Part, compare, compared, index, shards, write
from effllm.data.drawing import Drawing, draw
from effllm.data.duplicates import Cut, Duplicates, find_duplicates
from effllm.data.minhash import check_version
from effllm.data.near_duplicates import HeldOutGrams
from effllm.data.sampling import Decision, dropping_decisions
from effllm.data.settings import Corpus
from effllm.data.sources import Source, open_source
from effllm.data.workers import Workers, in_order, job_threads
from effllm.errors import UserError
from effllm.results.data import CorpusSummary, DocumentCounts, Overlap
from effllm.runtime.progress import Progress, progress
from effllm.runtime.stage import Job, main

_PARALLEL_FETCHES = 2
SPLITS = {"train": Decision.TRAIN, "held_out": Decision.HELD_OUT}


def build(job: Job) -> None:
    """Sample the corpus that `job.spec` describes, on the cores of the job."""
    config = job.config(Corpus)
    source = open_source(config.source, job.files, job.scratch / "hub")
    job.write(sample(source, config, job.output, job.scratch, job_threads()))


def sample(source: Source, config: Corpus, output: Path, scratch: Path, processes: int = 1) -> CorpusSummary:
    """Write the shards of the sample to `output` and return what they hold.

    Every unit of the source is read by itself, and what it needs to know of the others is merged between; the result is
    the same for any number of `processes`. Each holds a few batches of documents and an index of the held-out ones;
    `scratch` holds 42 bytes for each document, what was fetched or, of a source that cannot be read again, a copy of
    what was drawn, the finished shards, and for near duplicates their bands, pairs and grams. `UserError` if either
    split ends up empty.
    """
    if config.near_duplicates is not None:
        check_version(config.near_duplicates)
    asked: dict[str, float] = {"minimum_int_score": config.minimum_int_score}
    asked["filters.minimum_score"] = (config.filters and config.filters.minimum_score) or 0
    for key, value in asked.items():
        if value > 0 and not source.scored:
            raise UserError(
                f"{key} is {value}, but {source.label} carries no educational scores: set {key} to "
                f"{'0' if key == 'minimum_int_score' else 'null'} or take a scored source."
            )
    units = source.units()
    drawings = [Drawing(unit, n, scratch / "drawn" / f"{n:05d}", config) for n, unit in enumerate(units)]
    tally = _Tally(dropping_decisions(config))
    with Workers(min(processes, len(units))) as workers:
        found, cut = _draw(drawings, source, config, scratch, workers)
        parts = list(_decide(found, cut, tally, scratch))
        near = found.summary(cut)
        del found
        held_out = _index(parts, scratch, workers)
        stays = _separate(parts, held_out, tally, scratch, source.label, workers)
        _require_documents(tally, source, config)
        _write(parts, stays, config, output, scratch, source.label, workers)
    summary = tally.summary(config.maximum_tokens, held_out.overlap())
    return summary if near is None else summary.model_copy(update={"near_duplicates": near})


def units_of_budget(source: Source, config: Corpus, scratch: Path, processes: int) -> int:
    """How many units of the source, the first ones, the token budget takes: all of them where it is not met.

    They are fetched and read as for the sample itself; others are fetched only beside them, for the other processes.
    """
    units = source.units()
    drawings = [Drawing(unit, n, scratch / "drawn" / f"{n:05d}", config) for n, unit in enumerate(units)]
    with Workers(min(processes, len(units))) as workers:
        _, cut = _draw(drawings, source, config, scratch, workers)
    return len(units) if cut is None else cut[0] + 1


def _draw(
    drawings: Sequence[Drawing], source: Source, config: Corpus, scratch: Path, workers: Workers
) -> tuple[Duplicates, Cut | None]:
    """Read the units, as many as the token budget needs; returns what is left of them, and where the budget is met."""
    budget, taken, tokens = config.maximum_tokens, 0, 0
    needed = budget or 0
    at_once = len(drawings) if budget is None else workers.count
    with Progress(source.total, unit="documents", label=f"sampling {source.label}") as bar:
        while True:
            wave = drawings[taken : taken + at_once]
            try:
                for documents in workers.map(draw, _fetched_ahead(wave, workers.count)):
                    bar.update(documents)
            except UserError:
                if budget is None or len(wave) == 1:
                    raise
                # What the budget does not take need not be there: one by one, the first that fails is needed.
                at_once = 1
                continue
            taken += len(wave)
            tokens += sum(int(drawing.tokens()[drawing.decisions() == Decision.TRAIN].sum()) for drawing in wave)
            # Duplicates only ever make it less: no use in looking for them where all there is would not do.
            if tokens >= needed or taken == len(drawings):
                found = find_duplicates(drawings[:taken], config.near_duplicates, scratch, source.label, workers)
                if budget is None:
                    return found, None
                cut, left = found.cut(budget)
                if cut is not None or taken == len(drawings):
                    return found, cut
                needed = budget + tokens - left


def _fetched_ahead(drawings: Iterable[Drawing], processes: int) -> Iterator[Drawing]:
    """Yield what is to be read, fetched: units after it are on their way meanwhile."""

    def fetched(drawing: Drawing) -> Drawing:
        if not drawing.is_done:
            drawing.unit.fetch()
        return drawing

    with ThreadPoolExecutor(_PARALLEL_FETCHES) as pool:
        yield from in_order(pool, fetched, drawings, processes + _PARALLEL_FETCHES)


def _decide(found: Duplicates, cut: Cut | None, tally: "_Tally", scratch: Path) -> Iterator[Part]:
    for drawing in found.drawings:
        if cut is not None and drawing.number > cut[0]:
            return
        decisions = found.decisions(drawing, cut)
        tally.draw(decisions, drawing.tokens())
        directory = scratch / "parts" / f"{drawing.number:05d}"
        directory.mkdir(parents=True, exist_ok=True)
        arrays.save(directory / "decisions.npy", decisions)
        yield Part(drawing, directory / "decisions.npy")


def _index(parts: Sequence[Part], scratch: Path, workers: Workers) -> HeldOutGrams:
    """One index of all held-out documents, in `scratch/held_out`."""
    directory = scratch / "held_out"
    if not (directory / "entries.npy").exists():
        directory.mkdir(exist_ok=True)
        whole = HeldOutGrams()
        for part in workers.map(index, parts):
            whole.join(HeldOutGrams.open(part))
        whole.save(directory)
    return HeldOutGrams.open(directory)


def _separate(
    parts: Sequence[Part], held_out: HeldOutGrams, tally: "_Tally", scratch: Path, label: str, workers: Workers
) -> dict[str, list[Path]]:
    """Find the documents that are near to the other side's; returns by split, for each part, a mask of what stays."""
    total = tally.documents(Decision.TRAIN)
    with Progress(total, unit="documents", label=f"comparing train of {label}") as bar:
        for part, _ in zip(parts, workers.map(compare, ((p, scratch / "held_out") for p in parts)), strict=True):
            bar.update(int(np.count_nonzero(part.rows(Decision.TRAIN))))
    stays: dict[str, list[Path]] = {split: [] for split in SPLITS}
    for part in parts:
        leaving, observed = compared(part)
        held_out.note(observed)
        stays["train"].append(_stay(part, "train", leaving, Decision.NEAR_DUPLICATE, tally))
    # What stays in training decides which held-out documents lie within it.
    for part in parts:
        contained = held_out.which_contained(int(np.count_nonzero(part.rows(Decision.HELD_OUT))))
        stays["held_out"].append(_stay(part, "held_out", contained, Decision.CONTAINED, tally))
    return stays


def _stay(part: Part, split: str, leaving: np.ndarray, decision: Decision, tally: "_Tally") -> Path:
    mask = part.rows(SPLITS[split])
    rows = np.flatnonzero(mask)
    mask[rows[leaving]] = False
    tally.leave(SPLITS[split], decision, int(leaving.sum()))
    tally.keep(split, part.drawing.tokens()[mask], part.drawing.utf8_bytes()[mask])
    arrays.save(part.directory / f"{split}.npy", mask)
    return part.directory / f"{split}.npy"


def _write(
    parts: Sequence[Part],
    stays: dict[str, list[Path]],
    config: Corpus,
    output: Path,
    scratch: Path,
    label: str,
    workers: Workers,
) -> None:
    writing, written = scratch / "writing", scratch / "written"
    for directory in (writing, written):
        directory.mkdir(exist_ok=True)
    tasks = [
        shard
        for split in SPLITS
        for shard in shards(parts, split, stays[split], config.shard_documents, writing, written)
    ]
    files = list(progress(workers.map(write, tasks), len(tasks), unit="files", label=f"writing {label}"))
    for file in files:
        shutil.move(file, output / file.name)


class _Tally:
    """Counts of documents by decision, and of tokens and bytes by split."""

    def __init__(self, reasons: Sequence[Decision]) -> None:
        self._reasons = reasons
        self.decisions = np.zeros(len(Decision), dtype=np.int64)
        self.drawn_tokens = 0
        self.tokens = dict.fromkeys(SPLITS, 0)
        self.utf8_bytes = dict.fromkeys(SPLITS, 0)

    def draw(self, decisions: np.ndarray, tokens: np.ndarray) -> None:
        self.decisions += np.bincount(decisions, minlength=len(Decision))
        self.drawn_tokens += int(tokens[: len(decisions)][decisions == Decision.TRAIN].sum())

    def leave(self, before: Decision, after: Decision, documents: int) -> None:
        self.decisions[before] -= documents
        self.decisions[after] += documents

    def keep(self, split: str, tokens: np.ndarray, utf8_bytes: np.ndarray) -> None:
        self.tokens[split] += int(tokens.sum())
        self.utf8_bytes[split] += int(utf8_bytes.sum())

    def documents(self, decision: Decision) -> int:
        return int(self.decisions[decision])

    def dropped(self) -> dict[str, int]:
        return {decision.name.lower(): self.documents(decision) for decision in self._reasons}

    def summary(self, maximum_tokens: int | None, overlap: Overlap) -> CorpusSummary:
        return CorpusSummary(
            seen=int(self.decisions.sum()),
            dropped=self.dropped(),
            splits={
                split: DocumentCounts(
                    documents=self.documents(decision), tokens=self.tokens[split], utf8_bytes=self.utf8_bytes[split]
                )
                for split, decision in SPLITS.items()
            },
            budget_met=None if maximum_tokens is None else self.drawn_tokens >= maximum_tokens,
            overlap=overlap,
        )


def _require_documents(tally: _Tally, source: Source, config: Corpus) -> None:
    train, held_out = (tally.documents(decision) for decision in SPLITS.values())
    near, contained = tally.documents(Decision.NEAR_DUPLICATE), tally.documents(Decision.CONTAINED)
    if train and held_out:
        return
    if not tally.decisions.any():
        raise UserError(f"{source.label} hold no document: name files or a split that do.")
    if not train + held_out + near + contained:
        dropped = ", ".join(f"{reason} {count}" for reason, count in tally.dropped().items())
        raise UserError(
            f"nothing of {source.label} is left: of {int(tally.decisions.sum())} documents the filters dropped all "
            f"({dropped}); loosen languages, minimum_int_score, filters or sample_fraction."
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
    from effllm.stages.corpus import CorpusStage

    main(CorpusStage(), build)
