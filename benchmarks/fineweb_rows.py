"""Files with the columns of FineWeb-Edu, which the benchmarks of sampling share."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

_VOCABULARY = 30_000
_GROUP = 10_000


def rows(texts: pa.Array, numbers: range, random: np.random.Generator, schema: pa.Schema) -> pa.RecordBatch:
    """One row for each text, numbered by `numbers`; 2 % are not English, and 1 % score below 3.

    The draws of `random` are in the order of the columns.
    """
    count = len(numbers)
    scores = random.uniform(2.48, 5, size=count)  # 1 % round to 2
    columns = {
        "text": texts,
        "id": [f"<urn:uuid:{number:032x}>" for number in numbers],
        "dump": ["CC-MAIN-2024-10"] * count,
        "url": [f"https://example.org/{number}" for number in numbers],
        "file_path": [f"crawl-data/{number // 1000}.warc.gz" for number in numbers],
        "language": np.where(random.random(count) < 0.02, "de", "en").tolist(),
        "language_score": random.uniform(0.65, 1, size=count),
        "token_count": random.integers(500, 900, size=count),
        "score": scores,
        "int_score": np.round(scores).astype(int),
    }
    return pa.RecordBatch.from_pydict(columns, schema=schema)


def write_files(directory: Path, documents: int, words: int, files: int = 4) -> list[Path]:
    """Write documents of about so many words each, with the frequencies of Zipf's law.

    A fifth are copies of another one in which up to 4 % of the words are others, and one in a hundred is an exact copy.
    """
    from effllm.data.schema import SCHEMA

    random = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
    vocabulary = pa.array(["".join(random.choice(letters, size=n)) for n in random.integers(2, 10, size=_VOCABULARY)])
    bounds = np.cumsum(1 / np.arange(1, _VOCABULARY + 1))
    originals = np.zeros((0, words), dtype=np.int64)
    paths = [directory / f"part-{file:03d}.parquet" for file in range(files)]
    for file, path in enumerate(paths):
        with pq.ParquetWriter(path, SCHEMA, compression="snappy") as writer:
            numbers = range(file * documents // files, (file + 1) * documents // files)
            for start in range(numbers.start, numbers.stop, _GROUP):
                count = min(_GROUP, numbers.stop - start)
                ranks = np.searchsorted(bounds, random.random((count, words)) * bounds[-1])
                if len(originals):
                    near = np.flatnonzero(random.random(count) < 0.21)
                    copied = originals[random.integers(0, len(originals), size=len(near))]
                    share = random.uniform(0, 0.04, size=(len(near), 1))
                    share[: len(near) // 21] = 0
                    ranks[near] = np.where(random.random(copied.shape) < share, ranks[near], copied)
                # Of each group some may be copied: so copies are in all files, and clusters stay small.
                originals = np.concatenate([originals, ranks[: count // 4]])
                texts = pc.binary_join(
                    pa.ListArray.from_arrays(
                        np.arange(0, ranks.size + 1, words, dtype=np.int32), vocabulary.take(pa.array(ranks.ravel()))
                    ),
                    " ",
                )
                writer.write_batch(rows(texts, range(start, start + count), random, SCHEMA), row_group_size=1000)
    return paths
