"""Stage `overlap`: how much of each item of a benchmark stands in the text that models of the study were trained on.

    python -m effllm.evaluation.overlap --spec spec.json --input benchmark=... --input corpus=... --output DIR

The payload is `overlap.json` and `items.parquet`, with the share of each item's word 5-grams that occur somewhere in
the corpus's training part. No model takes part, so no score is made again for it.
"""

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from effllm.data.sources.reading import open_parquet
from effllm.data.word_grams import WORDS, word_grams
from effllm.errors import UserError
from effllm.results.benchmark import Benchmark, BenchmarkTask
from effllm.results.overlap import COVERED, ItemsOverlap
from effllm.runtime.artifact import Artifact
from effllm.runtime.stage import Job, main

# What of a row is the item: of held-out text the true sentence, or the document.
_COLUMNS = {
    "held_out": ("sentence", "text"),
    "human_eval": ("prompt", "canonical_solution"),
    "hard_math": ("question",),
}
_BATCH_ROWS = 4096
_FILTER_BITS = 22

Item = tuple[str, int, str]
"""Task, the item's number in it, text."""


def build(job: Job) -> None:
    """Write overlap.json and items.parquet."""
    benchmark, corpus = job.inputs["benchmark"], job.inputs["corpus"]
    folder = job.scratch / "tasks"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    items = list(_items(Benchmark.read(benchmark.directory), benchmark.directory, folder))
    tasks, numbers, texts = zip(*items, strict=True)
    grams = list(word_grams(pa.array(texts, pa.string())))
    documents, found = _found(np.unique(np.concatenate(grams)), _training_texts(corpus))
    shares = [float(np.isin(own, found, assume_unique=True).mean()) if len(own) else None for own in grams]
    known = [share for share in shares if share is not None]
    table = {"task": tasks, "doc_id": numbers, "grams": [len(own) for own in grams], "share_in_training": shares}
    pq.write_table(pa.table(table), job.output / "items.parquet")
    job.write(
        ItemsOverlap(
            benchmark=benchmark.manifest.id,
            corpus=corpus.manifest.id,
            training_documents=documents,
            words_per_gram=WORDS,
            items=len(items),
            items_without_words=len(shares) - len(known),
            covered_share=COVERED,
            items_covered=sum(share >= COVERED for share in known),
            mean_share=sum(known) / len(known) if known else None,
        )
    )


def _items(benchmark: Benchmark, payload: Path, folder: Path) -> Iterator[Item]:
    if benchmark.kind == "harness":
        yield from _harness_items(benchmark, payload, folder)
        return
    for task in benchmark.tasks:
        for number, row in enumerate(_rows(task, payload)):
            yield task.name, number, "\n".join(row[column] for column in _COLUMNS[benchmark.kind] if column in row)


def _rows(task: BenchmarkTask, payload: Path) -> list[dict[str, Any]]:
    with open_parquet(payload / task.data_files["test"]) as file:
        return file.read().to_pylist()


def _harness_items(benchmark: Benchmark, payload: Path, folder: Path) -> Iterator[Item]:
    """Items as they are asked, without examples and descriptions; the choices that a question lists are part of it."""
    from effllm.evaluation.run_time_needs import NLTK_DATA, use_nltk_data
    from effllm.evaluation.tasks import load_tasks, write_task_files

    write_task_files(benchmark, payload, folder)
    use_nltk_data(payload / NLTK_DATA)
    for name, task in load_tasks(folder, benchmark.task, seed=0)["tasks"].items():
        for number, doc in enumerate(task.eval_docs):
            if benchmark.limit is not None and number == benchmark.limit:
                break
            # Where every choice makes another text of the item, it is the number of the right one.
            asked = task.doc_to_text(doc)
            yield name, number, task.doc_to_choice(doc)[asked] if isinstance(asked, int) else asked


def _found(needed: np.ndarray, batches: Iterable[pa.StringArray]) -> tuple[int, np.ndarray]:
    """How many documents there are, and which of the grams in `needed` (sorted, uint64) occur in one of them."""
    shift = np.uint64(64 - _FILTER_BITS)
    # By the leading bits of a gram, whether some needed one has them: what spares most searches.
    is_possible = np.zeros(1 << _FILTER_BITS, dtype=bool)
    is_possible[needed >> shift] = True
    occurs = np.zeros(len(needed), dtype=bool)
    documents = 0
    for texts in batches:
        documents += len(texts)
        for grams in word_grams(texts):
            possible = grams[is_possible[grams >> shift]]
            at = np.searchsorted(needed, possible)
            at[at == len(needed)] = 0
            occurs[at[needed[at] == possible]] = True
    return documents, needed[occurs]


def _training_texts(corpus: Artifact) -> Iterator[pa.StringArray]:
    for path in sorted(corpus.directory.glob("train-*.parquet")):
        with open_parquet(path) as file:
            if "text" not in file.schema_arrow.names:
                raise UserError(f"{path} has no column text; delete {corpus.directory} and run again.")
            for batch in file.iter_batches(_BATCH_ROWS, columns=["text"]):
                yield batch.column(0)


if __name__ == "__main__":
    from effllm.stages.overlap import OverlapStage

    main(OverlapStage(), build)
