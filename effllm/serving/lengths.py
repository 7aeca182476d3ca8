"""Lengths of prompts and outputs as a study states them: always the same, or drawn."""

from typing import TYPE_CHECKING

from effllm.serving.load import Length

if TYPE_CHECKING:
    import numpy as np


def draw_lengths(length: Length, requests: int, generator: "np.random.Generator") -> list[int]:
    """Tokens of so many requests."""
    if length.kind == "fixed":
        return [length.tokens] * requests
    if length.kind == "uniform":
        return [int(tokens) for tokens in generator.integers(length.least, length.most + 1, requests)]
    drawn: list[int] = []
    while len(drawn) < requests:
        # A range of one token far from the median is rarely hit, so that many are drawn at once.
        tokens = generator.lognormal(0.0, length.sigma, max(requests, 1024)) * length.median
        drawn += [int(value) for value in tokens.round() if length.least <= value <= length.most]
    return drawn[:requests]
