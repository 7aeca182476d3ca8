"""Rows with the columns of FineWeb-Edu around given texts, which the benchmarks of sampling share."""

import numpy as np
import pyarrow as pa


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
