"""Text at scale: sampling, near duplicates and encoding, each against what it is compared with, in one run.

    python benchmarks/data.py sampling [--datatrove PYTHON]   # documents/s: now, before it ran in parts, datatrove;
                                                              # and without the comparison with held-out text
    python benchmarks/data.py encoding                        # tokens/s against `datasets.map`
    python benchmarks/data.py near                            # near duplicates of 100,000, 300,000, 1,000,000 documents
    python benchmarks/data.py recall                          # pairs of 50,000 documents against brute force

Each takes --documents, --repeats and --output FIGURES.json. Every repeat of a side is a process of its own, sides take
turns, imports are outside the clock, and CPU time is that of all its processes; where other work is on the machine only
CPU time compares. Ratios are of medians. `PYTHON` is that of an environment with datatrove 0.10.1 (which wants an older
xxhash than effllm): `pip install "datatrove[processing,io]==0.10.1" "xxhash<4"`.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from fineweb_rows import write_files

CONFIG = {
    "source": {"kind": "files", "paths": ["*.parquet"]},
    "languages": ["en"],
    "minimum_int_score": 3,
    "held_out_fraction": 0.01,
}
NEAR = CONFIG | {"near_duplicates": {}, "held_out_fraction": 0.001}
# The change since when a corpus is sampled on all cores: what comes before it is the side `before`.
IN_PARTS = "Sample corpora and encode tokens on all cores of a job"
REPOSITORY = Path(__file__).resolve().parents[1]


def sample(paths: list[Path], scratch: Path, config: dict[str, Any], processes: int | None) -> dict[str, Any]:
    """Sample files: by this version on so many processes, or by the one before for None."""
    from effllm.data.corpus import sample as run
    from effllm.data.sources.files import FilesSource

    if processes is None:
        from effllm.study.data import Corpus
    else:
        from effllm.data.settings import Corpus
    for name in ("output", "scratch"):
        (scratch / name).mkdir()
    more = () if processes is None else (processes,)
    model = Corpus.model_validate(config)
    return measured(lambda: run(FilesSource(paths), model, scratch / "output", scratch / "scratch", *more).seen)


def sample_uncompared(paths: list[Path], scratch: Path) -> dict[str, Any]:
    """Sample files on one process without the comparison with held-out text: the work that datatrove does too."""
    from effllm.data import arrays, corpus
    from effllm.data.sampling import Decision

    def nothing_found(task: tuple[Any, Path]) -> None:
        part, _ = task
        arrays.save(part.directory / "leaving.npy", np.zeros(np.count_nonzero(part.rows(Decision.TRAIN)), bool))
        for name, dtype in (("documents", np.int64), ("jaccard", np.float64), ("within", np.int64)):
            arrays.save(part.directory / f"{name}.npy", np.zeros(0, dtype))
        arrays.save(part.directory / "in_training.npy", np.zeros(0, np.uint8))

    corpus.compare = nothing_found
    return sample(paths, scratch, CONFIG, 1)


def datatrove(paths: list[Path], scratch: Path) -> dict[str, Any]:
    """The same filters, exact duplicates and files by datatrove, which knows no held-out side to compare with."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup.exact_dedup import (
        ExactDedupConfig,
        ExactDedupFilter,
        ExactDedupSignature,
        ExactFindDedups,
    )
    from datatrove.pipeline.filters import LambdaFilter
    from datatrove.pipeline.readers import ParquetReader
    from datatrove.pipeline.writers import ParquetWriter
    from loguru import logger

    logger.remove()
    config = ExactDedupConfig(content_getter=lambda document: document.text, only_dedup_in_index=False)

    def first() -> list[Any]:
        return [
            ParquetReader(str(paths[0].parent), glob_pattern="*.parquet"),
            LambdaFilter(
                lambda document: document.metadata["language"] == "en" and document.metadata["int_score"] >= 3
            ),
        ]

    def run() -> int:
        steps = [
            ([*first(), ExactDedupSignature(str(scratch / "signatures"), config=config)], len(paths)),
            ([ExactFindDedups(str(scratch / "signatures"), str(scratch / "duplicates"), config=config)], 1),
            (
                [
                    *first(),
                    ExactDedupFilter(str(scratch / "duplicates"), config=config),
                    ParquetWriter(str(scratch / "output"), compression="snappy", expand_metadata=True),
                ],
                len(paths),
            ),
        ]
        for number, (pipeline, tasks) in enumerate(steps):
            LocalPipelineExecutor(pipeline, tasks=tasks, workers=1, logging_dir=str(scratch / f"logs-{number}")).run()
        return sum(pq.read_metadata(path).num_rows for path in paths)

    found = measured(run)
    kept = sum(pq.read_metadata(path).num_rows for path in (scratch / "output").rglob("*.parquet"))
    return found | {"kept": kept}


def encode(paths: list[Path], scratch: Path) -> dict[str, Any]:
    """Tokens per second of the pieces of the tokens stage on two processes, once those have started."""
    import psutil

    from effllm.data.packing import pack, pieces_of
    from effllm.data.tokenizer import load
    from effllm.data.workers import Workers

    directory, output, dtype = paths[0].parent, scratch / "output", np.dtype(np.uint16)
    output.mkdir()
    pieces = pieces_of(directory, "train", directory / "trained", dtype, scratch)
    documents = sum(pq.read_metadata(path).num_rows for path in paths)

    with Workers(2) as workers:
        # As the imports of the other side, whose processes are forks.
        list(workers.map(load, [directory / "trained"] * 2))
        started = sum(sum(process.cpu_times()[:2]) for process in psutil.Process().children())

        def run() -> int:
            tokens = pack(pieces, "train", dtype, output, scratch, documents, workers).tokens
            workers.__exit__(None, None, None)
            return tokens

        found = measured(run)
    return found | {"cpu_s": found["cpu_s"] - started}


def encode_by_datasets(paths: list[Path], scratch: Path) -> dict[str, Any]:
    """The same by `datasets.map` in batches on two processes, the end-of-text token after each document included."""
    import datasets

    from effllm.data.tokenizer import load

    datasets.disable_progress_bars()
    tokenizer = load(paths[0].parent / "trained")
    files = [str(path) for path in paths]
    data = datasets.load_dataset("parquet", data_files=files, split="train", columns=["text"], cache_dir=str(scratch))

    def batch(texts: list[str]) -> dict[str, list[list[int]]]:
        found = tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
        return {"input_ids": [[*ids, tokenizer.eos_token_id] for ids in found]}

    def run() -> int:
        mapped = data.map(batch, batched=True, input_columns="text", remove_columns="text", num_proc=2)
        return sum(pc.sum(pc.list_value_length(chunk)).as_py() for chunk in mapped.data.column("input_ids").chunks)

    return measured(run)


def measured(work: Callable[[], int]) -> dict[str, Any]:
    """What `work` counts, its seconds, and the highest memory of this process and of one that it started."""
    # The first array imports pandas, where it is installed.
    pa.array([0])
    before, began = os.times(), time.perf_counter()
    count = work()
    wall_s, after = time.perf_counter() - began, os.times()
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return {
        "count": count,
        "wall_s": wall_s,
        "cpu_s": sum(after[:4]) - sum(before[:4]),
        "memory_mb": int(peak.split()[1]) / 1024,
        "memory_of_a_process_mb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,
    }


SIDES: dict[str, Callable[[list[Path], Path], dict[str, Any]]] = {
    "before": lambda paths, scratch: sample(paths, scratch, CONFIG, None),
    "one process": lambda paths, scratch: sample(paths, scratch, CONFIG, 1),
    "two processes": lambda paths, scratch: sample(paths, scratch, CONFIG, 2),
    "uncompared": sample_uncompared,
    "datatrove": datatrove,
    "pieces": encode,
    "datasets.map": encode_by_datasets,
    "without": lambda paths, scratch: sample(paths, scratch, NEAR | {"near_duplicates": None}, 1),
    "with": lambda paths, scratch: sample(paths, scratch, NEAR, 1),
}


def turns(sides: dict[str, tuple[str, Path]], paths: list[Path], repeats: int) -> dict[str, Any]:
    """Run each side (its Python and its tree) so often, in turns; returns all figures, and rates by medians."""
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for _ in range(repeats):
        for side, (python, tree) in sides.items():
            with tempfile.TemporaryDirectory(dir=paths[0].parent) as scratch:
                command = [python, __file__, "side", "--side", side, "--scratch", scratch, "--files", *map(str, paths)]
                environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
                result = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment, text=True)
            found[side].append(json.loads(result.stdout.splitlines()[-1]))
            print(side, {key: round(value, 2) for key, value in found[side][-1].items()}, flush=True)
    rates = {
        side: {
            f"per_{clock}_second": statistics.median(run["count"] / run[f"{clock}_s"] for run in runs)
            for clock in ("wall", "cpu")
        }
        for side, runs in found.items()
    }
    return {"runs": found, "medians": rates}


def ratios(figures: dict[str, Any], side: str) -> dict[str, dict[str, float]]:
    """How much faster each side is than `side`, by both clocks."""
    base = figures["medians"][side]
    return {
        other: {clock: rate / base[clock] for clock, rate in rates.items()}
        for other, rates in figures["medians"].items()
        if other != side
    }


def sampling(arguments: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """Documents per second of the sampler."""
    git = ["git", "-C", str(REPOSITORY)]
    found = subprocess.run(
        [*git, "log", "-1", "--format=%H", "--fixed-strings", f"--grep={IN_PARTS}"],
        check=True,
        capture_output=True,
        text=True,
    )
    before = directory / "before"
    before.mkdir()
    archive = subprocess.run([*git, "archive", f"{found.stdout.strip()}^", "effllm"], check=True, capture_output=True)
    subprocess.run(["tar", "-x", "-C", str(before)], check=True, input=archive.stdout)
    here = (sys.executable, REPOSITORY)
    sides = {"before": (sys.executable, before), "one process": here, "two processes": here, "uncompared": here}
    if arguments.datatrove:
        sides["datatrove"] = (arguments.datatrove, directory)
    (directory / "files").mkdir()
    paths = write_files(directory / "files", arguments.documents or 60_000, words=480)
    figures = turns(sides, paths, arguments.repeats)
    return figures | {"faster_than": {side: ratios(figures, side) for side in ("before", "datatrove") if side in sides}}


def encoding(arguments: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """Tokens per second of encoding the text of the Python installation, so often, by a tokenizer trained on it."""
    from effllm.data.settings import TrainedTokenizer
    from effllm.data.sources.embedded import EmbeddedSource
    from effllm.data.tokenizer import train

    rows = pa.Table.from_batches(EmbeddedSource(200).batches())
    copies = -(-(arguments.documents or 20_000) // rows.num_rows)
    paths = [directory / f"train-{number:05d}.parquet" for number in range(copies)]
    for path in paths:
        pq.write_table(rows, path, row_group_size=1000)
    trained = train(directory, TrainedTokenizer(kind="train", corpus="unused", vocab_size=16_384))
    trained.save_pretrained(directory / "trained" / "tokenizer")
    figures = turns(dict.fromkeys(("pieces", "datasets.map"), (sys.executable, REPOSITORY)), paths, arguments.repeats)
    return figures | {"faster_than": {"datasets.map": ratios(figures, "datasets.map")}}


def near(arguments: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """Time and memory of near duplicates as documents become more: the same corpora with and without."""
    figures = {}
    for documents in [arguments.documents] if arguments.documents else [100_000, 300_000, 1_000_000]:
        paths = write_files(directory, documents, words=200, files=8)
        figures[str(documents)] = turns(
            dict.fromkeys(("without", "with"), (sys.executable, REPOSITORY)), paths, arguments.repeats
        )
    return figures


def recall(arguments: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """Pairs that are found, among all that have a Jaccard similarity of 0.8 by a product of sparse matrices."""
    from effllm.data import arrays

    documents = arguments.documents or 50_000
    paths = write_files(directory, documents, words=200)
    figures = sample(paths, directory, NEAR, 1)
    texts = [text for path in paths for text in pq.read_table(path, columns=["text"])["text"].to_pylist()]
    (merged,) = (directory / "scratch" / "duplicates").iterdir()
    decisions = np.concatenate([arrays.load(path) for path in sorted(merged.glob("decisions-*"))])
    edges = np.concatenate([arrays.load(path) for path in sorted(merged.glob("edges-*"))])
    size = pq.read_metadata(paths[0]).num_rows
    rows = [(edges[name] >> 40) * size + (edges[name] & ((1 << 40) - 1)) for name in ("earlier", "later")]
    found = dict(zip(zip(*(part.tolist() for part in rows), strict=True), edges["jaccard"].tolist(), strict=True))
    expected: dict[tuple[int, int], float] = {}
    for side in (0, 1):
        members = np.flatnonzero(decisions == side)
        expected |= brute_force([texts[member] for member in members.tolist()], members, 0.8)
    right = sum(expected.get(pair) == similarity for pair, similarity in found.items())
    labels = {name: _labels(list(pairs), documents) for name, pairs in (("found", found), ("expected", expected))}
    together = sum(labels["found"][one] == labels["found"][other] for one, other in expected)
    return {
        "documents": documents,
        "cpu_s": figures["cpu_s"],
        "pairs": len(expected),
        "pairs_found": len(found),
        "recall": right / len(expected),
        "recall_of_clusters": together / len(expected),
        "precision": right / len(found),
        "left_out": documents - len(set(labels["found"].tolist())),
        "left_out_by_brute_force": documents - len(set(labels["expected"].tolist())),
    }


def brute_force(texts: list[str], members: np.ndarray, threshold: float) -> dict[tuple[int, int], float]:
    """All pairs of texts that are as similar as that, by the words themselves."""
    from scipy.sparse import csr_array, triu

    words = [text.split(" ") for text in texts]
    numbers = {word: number for number, word in enumerate({word for each in words for word in each})}
    grams, owners = [], []
    for owner, each in enumerate(words):
        ranks = np.array([numbers[word] for word in each], dtype=np.uint16)
        grams.append(np.lib.stride_tricks.sliding_window_view(ranks, 5))
        owners.append(np.full(len(grams[-1]), owner))
    column = np.unique(np.ascontiguousarray(np.concatenate(grams)).view("V10").ravel(), return_inverse=True)[1]
    holds = csr_array((np.ones(len(column), np.int32), (np.concatenate(owners), column)))
    holds.data[:] = 1
    sizes = np.asarray(holds.sum(axis=1)).ravel()
    common = triu((holds @ holds.T).tocoo(), k=1)
    one, other = common.coords
    jaccard = common.data / (sizes[one] + sizes[other] - common.data)
    near = jaccard >= threshold
    pairs = zip(members[one[near]].tolist(), members[other[near]].tolist(), strict=True)
    return dict(zip(pairs, jaccard[near].tolist(), strict=True))


def _labels(pairs: list[tuple[int, int]], documents: int) -> np.ndarray:
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    one, other = np.array(pairs).T
    return connected_components(coo_array((np.ones(len(one)), (one, other)), shape=(documents, documents)), False)[1]


def main() -> None:
    """Run, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figure", choices=["sampling", "encoding", "near", "recall", "side"])
    parser.add_argument("--documents", type=int, help="how many, instead of the figure's own number")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--datatrove", help="Python of an environment with datatrove")
    parser.add_argument("--output", type=Path, help="also write the figures as JSON")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--files", type=Path, nargs="*", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.figure == "side":
        print(json.dumps(SIDES[arguments.side](arguments.files, arguments.scratch)))
        return
    run = {"sampling": sampling, "encoding": encoding, "near": near, "recall": recall}[arguments.figure]
    with tempfile.TemporaryDirectory() as directory:
        figures = run(arguments, Path(directory))
    text = json.dumps(figures, indent=1)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
