"""Documents per second of the corpus sampler against plain `datasets` streaming over the same parquet files.

    python benchmarks/sampler.py [--documents 60000] [--repeats 5] [--output sampler.json]

Both sides read every document of synthetic files in FineWeb-Edu's shape. `datasets` only iterates over the rows;
the sampler filters by language and score, draws by id, removes duplicates, splits, and writes its shards. The stage
does that and also what every stage does: digests of its inputs and of its payload, fsync, publishing. Each repeat
is a process of its own, the sides take turns, and imports are outside the clock. Reported: medians and all repeats.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fineweb_rows import rows

SIDES = ("datasets", "sampler", "stage")
CONFIG = {
    "source": {"kind": "files", "paths": ["*.parquet"]},
    "languages": ["en"],
    "minimum_int_score": 3,
    "sample_fraction": 0.99,
    "held_out_fraction": 0.01,
    "seed": 1,
}
_WORDS_PER_DOCUMENT = 480


def write_files(directory: Path, documents: int, files: int = 4, seed: int = 0) -> list[Path]:
    """Write `documents` documents of about 3 kB each in FineWeb-Edu's columns: Zipf-distributed words, 1 % copies."""
    random = np.random.default_rng(seed)
    letters = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
    lengths = random.integers(2, 10, size=30_000)
    words = np.array(["".join(random.choice(letters, size=length)) for length in lengths], dtype=object)
    paths = []
    for file in range(files):
        path = directory / f"part-{file:03d}.parquet"
        numbers = range(file * documents // files, (file + 1) * documents // files)
        with pq.ParquetWriter(path, _schema(), compression="snappy") as writer:
            for start in range(numbers.start, numbers.stop, 1000):
                group = range(start, min(start + 1000, numbers.stop))
                writer.write_batch(_documents(group, words, random))
        paths.append(path)
    return paths


def _schema() -> pa.Schema:
    from effllm.data.schema import SCHEMA

    return SCHEMA


def _documents(numbers: range, words: np.ndarray, random: np.random.Generator) -> pa.RecordBatch:
    count = len(numbers)
    ranks = np.minimum(random.zipf(1.3, size=(count, _WORDS_PER_DOCUMENT)), len(words)) - 1
    texts = [" ".join(words[row]) for row in ranks]
    for copy in range(0, count - 100, 100):
        texts[copy + 100] = texts[copy]
    return rows(texts, numbers, random, _schema())


def run_datasets(paths: list[Path]) -> tuple[float, int]:
    """Seconds to iterate over the rows of a stream, and their number."""
    import datasets

    started = time.perf_counter()
    stream = datasets.load_dataset("parquet", data_files=[str(path) for path in paths], split="train", streaming=True)
    documents = sum(1 for _ in stream)
    return time.perf_counter() - started, documents


def run_sampler(paths: list[Path]) -> tuple[float, int]:
    """Seconds to sample the files into shards, and the number of documents seen."""
    from effllm.data.corpus import sample
    from effllm.data.settings import Corpus
    from effllm.data.sources.files import FilesSource

    with tempfile.TemporaryDirectory(dir=paths[0].parent) as output:
        started = time.perf_counter()
        summary = sample(FilesSource(paths), Corpus.model_validate(CONFIG), Path(output), Path(output))
        return time.perf_counter() - started, summary.seen


def run_stage(paths: list[Path]) -> tuple[float, int]:
    """Seconds of the whole stage in this process, and the number of documents seen."""
    from effllm.data.corpus import build
    from effllm.runtime import stage
    from effllm.stages import STAGES

    with tempfile.TemporaryDirectory(dir=paths[0].parent) as results:
        spec = {"stage": "corpus", "version": STAGES["corpus"].version, "config": CONFIG}
        started = time.perf_counter()
        built = stage.run(
            STAGES["corpus"], build, spec=spec, inputs={"files": paths}, output=Path(results) / "corpus" / "sample"
        )
        return time.perf_counter() - started, built.json("corpus.json")["seen"]


def compare(documents: int, repeats: int, directory: Path) -> dict:
    """Run all sides `repeats` times, interleaved, over one set of files below `directory`."""
    paths = write_files(directory, documents)
    rates: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(repeats):
        for side in SIDES:
            argv = [sys.executable, __file__, "--side", side, *map(str, paths)]
            output = subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout
            seconds, seen = json.loads(output.splitlines()[-1])
            if seen != documents:
                raise SystemExit(f"{side} saw {seen} of {documents} documents")
            rates[side].append(seen / seconds)
    medians = {side: statistics.median(values) for side, values in rates.items()}
    return {
        "documents": documents,
        "file_bytes": sum(path.stat().st_size for path in paths),
        "cpus": len(os.sched_getaffinity(0)),
        "documents_per_second": rates,
        "median_documents_per_second": medians,
        "ratio_sampler": medians["sampler"] / medians["datasets"],
        "ratio_stage": medians["stage"] / medians["datasets"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=60_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="also write the figures as JSON")
    parser.add_argument("--side", choices=SIDES, help="run one side once over the files given (used by the benchmark)")
    parser.add_argument("files", type=Path, nargs="*", help="only with --side")
    arguments = parser.parse_args()
    if arguments.side:
        run = {"datasets": run_datasets, "sampler": run_sampler, "stage": run_stage}[arguments.side]
        print(json.dumps(run(arguments.files)))
        return
    with tempfile.TemporaryDirectory() as directory:
        figures = compare(arguments.documents, arguments.repeats, Path(directory))
    for side, rate in figures["median_documents_per_second"].items():
        print(f"{side:10} {rate:10,.0f} documents/s")
    print(f"the sampler is {figures['ratio_sampler']:.2f}x, the whole stage {figures['ratio_stage']:.2f}x as fast")
    if arguments.output:
        arguments.output.write_text(json.dumps(figures, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
