"""Random token ids in the layout of `effllm.data.tokens`, drawn from a seed alone."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from effllm.data.settings import SyntheticStream
from effllm.data.tokens import BOUNDARY_DTYPE, boundaries_file, id_dtype, tokens_file
from effllm.data.writing import named_errors
from effllm.results.data import DocumentCounts, TokensIndex
from effllm.runtime.stage import Job

SPLIT = "train"
RANDOM_TOKENS = "random tokens"
"""Why nothing that was trained on such a stream has a held-out loss or a score."""

_CHUNK_TOKENS = 1 << 22


def write_stream(job: Job, stream: SyntheticStream) -> None:
    """Write one split, one document long, of ids that no tokenizer made."""
    dtype = id_dtype(stream.vocab_size)
    with named_errors(tokens_file(job.output, SPLIT)):
        write_ids(tokens_file(job.output, SPLIT), stream, dtype)
        np.array([stream.tokens], dtype=BOUNDARY_DTYPE).tofile(boundaries_file(job.output, SPLIT))
    job.write(
        TokensIndex(
            dtype=dtype.str,
            eos_token_id=None,
            splits={SPLIT: DocumentCounts(documents=1, tokens=stream.tokens, utf8_bytes=None)},
            unscored=RANDOM_TOKENS,
            vocab_size=stream.vocab_size,
        )
    )


def write_ids(path: Path, stream: SyntheticStream, dtype: np.dtype) -> None:
    """Write the ids as `dtype`, some millions at a time."""
    with open(path, "wb") as file:
        for ids in draw(stream):
            file.write(ids.astype(dtype).data)


def draw(stream: SyntheticStream) -> Iterator[np.ndarray]:
    """Yield the ids in chunks, int64: PCG64 from the seed, so that a seed means the same ids everywhere."""
    generator = np.random.Generator(np.random.PCG64(stream.seed))
    thresholds = _zipf_thresholds(stream) if stream.distribution == "zipf" else None
    for start in range(0, stream.tokens, _CHUNK_TOKENS):
        count = min(_CHUNK_TOKENS, stream.tokens - start)
        if thresholds is None:
            yield generator.integers(stream.vocab_size, size=count)
        else:
            yield np.searchsorted(thresholds, generator.integers(1 << 32, size=count), side="right")


def _zipf_thresholds(stream: SyntheticStream) -> np.ndarray:
    """Upper bounds of each id's share of 32-bit integers: whole numbers hide how a machine rounds its powers."""
    weights = np.arange(1, stream.vocab_size + 1, dtype=np.float64) ** -stream.exponent
    shares = np.cumsum(weights) / weights.sum()
    bounds = np.floor(shares * (1 << 32)).astype(np.int64)
    bounds[-1] = 1 << 32
    return bounds
