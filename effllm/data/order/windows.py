"""From documents to the windows of a packed stream that hold parts of them."""

import numpy as np

_CHUNK_WINDOWS = 1 << 20


def window_means(values: np.ndarray, ends: np.ndarray, sequence_length: int) -> np.ndarray:
    """Mean of the documents' values over the tokens of each whole window, float64 (windows,).

    `values` are one for each document, NaN where it has none: its tokens do not count. `ends` are the offsets at which
    documents end, as packed tokens have them. NaN for a window in which no token counts.
    """
    known = np.isfinite(values)
    lengths = np.diff(ends, prepend=0)
    # Sums up to the end of each document. Within it they grow by a straight line, on which windows cut it.
    points = np.concatenate([[0], ends])
    sums = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0.0) * lengths)])
    counts = np.concatenate([[0], np.cumsum(known * lengths)])
    windows = int(ends[-1]) // sequence_length
    means: np.ndarray = np.full(windows, np.nan)
    for first in range(0, windows, _CHUNK_WINDOWS):
        last = min(first + _CHUNK_WINDOWS, windows)
        edges = np.arange(first, last + 1) * sequence_length
        tokens = np.diff(np.interp(edges, points, counts))
        np.divide(np.diff(np.interp(edges, points, sums)), tokens, out=means[first:last], where=tokens > 0.5)
    return means
