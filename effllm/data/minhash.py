"""MinHash signatures of documents, cut into bands: near duplicates are likely to agree in one.

Of the word grams of a document, each of `hashes` functions keeps the least value; two documents agree in one with the
chance of their Jaccard similarity. The values of a band are put together into a key of 64 bits, with the band's number.
"""

import numpy as np
import pyarrow as pa
from rensa import RMinHash

from effllm.data.settings import NearDuplicates
from effllm.data.word_grams import mixed, repeated_grams
from effllm.errors import UserError

BAND = np.dtype([("key", "<u8"), ("row", "<u4")])


def check_version(settings: NearDuplicates) -> None:
    """`UserError` if the installed library makes other signatures than the settings name."""
    if settings.algorithm != RMinHash.ALGORITHM_VERSION:
        raise UserError(
            f"near_duplicates.algorithm is {settings.algorithm}, but the installed rensa makes signatures of version "
            f"{RMinHash.ALGORITHM_VERSION}: install the release in requirements.txt."
        )


def band_records(texts: pa.StringArray, rows: np.ndarray, settings: NearDuplicates) -> np.ndarray:
    """`BAND` records of documents: one for each band of each text that has a word, with its number in `rows`."""
    parts = [np.zeros(0, dtype=BAND)]
    first = 0
    for grams, bounds in repeated_grams(texts, settings.words_per_gram):
        last = first + len(bounds) - 1
        has_words = np.diff(bounds) > 0
        keys = _keys(grams, bounds, settings)[has_words]
        part = np.empty(keys.size, dtype=BAND)
        part["key"], part["row"] = keys.ravel(), np.repeat(rows[first:last][has_words], settings.bands)
        parts.append(part)
        first = last
    return np.concatenate(parts)


def _keys(grams: np.ndarray, bounds: np.ndarray, settings: NearDuplicates) -> np.ndarray:
    """uint64 (documents, bands)."""
    # The least value of a set is that of the same set with repeats.
    signatures = RMinHash.digest_matrix_from_flat_token_hashes(
        grams, bounds.astype(np.uint64), settings.hashes, settings.seed
    )
    values = np.array(signatures.to_rows(), dtype=np.uint64).reshape(-1, settings.bands, settings.rows_per_band)
    # The number of a place goes into its value, so the same values in another band are another key.
    places = np.arange(settings.hashes, dtype=np.uint64).reshape(values.shape[1:]) << np.uint64(32)
    return mixed(np.add.reduce(mixed(values | places), axis=2))
