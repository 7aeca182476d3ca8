"""Texts that are near each other in every degree, and their similarity by its definition."""

import re

WORDS = [f"{first}{second}" for first in "bdfgklmnprstvz" for second in ("a", "esto", "il", "ouns", "ubber")]


def grams_of(text):
    """Word 5-grams as tuples; all words of a shorter text."""
    words = re.findall(r"[0-9a-z]+", text.lower())
    return {tuple(words[start : start + 5]) for start in range(max(1, len(words) - 4))} if words else set()


def jaccard(one, other):
    return len(one & other) / len(one | other) if one or other else 0.0


def prose(rng, words):
    return " ".join(rng.choice(WORDS) for _ in range(words))


def altered(rng, text, share):
    """`text` with about that share of its words replaced."""
    return " ".join(rng.choice(WORDS) if rng.random() < share else word for word in text.split())
