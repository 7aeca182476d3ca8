"""How hard a text is to read or to predict, from its characters alone. None where it is too short to tell."""

import re
from collections.abc import Iterable

# Letters, and apostrophes between them.
_WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*")
# Where a sentence ends: before white space, closing quotes and brackets in between. "3.5" ends none.
_SENTENCE_END = re.compile(r"[.!?\u2026]+[\"'\u201d\u2019)\]]*(?=\s|$)")
_VOWELS = re.compile("[aeiouy]+")
# A final e that is not heard: after a consonant, but for -le after another one ("table").
_SILENT_E = re.compile(r"[^aeiouy]e$")
_SYLLABIC_LE = re.compile(r"[^aeiouyl]le$")
# McCarthy and Jarvis (2010): a stretch of text whose share of distinct words falls below it is a factor.
MTLD_THRESHOLD = 0.72


def compression_ratio(text: str, level: int) -> float:
    """Bytes of the text in UTF-8 compressed by gzip (DEFLATE) at `level`, over its bytes: low where it repeats itself.

    The header of 18 bytes counts. The library is pyarrow's, whose version is pinned.
    """
    import pyarrow as pa

    data = text.encode()
    return len(pa.Codec("gzip", compression_level=level).compress(data, asbytes=True)) / len(data)


def flesch_reading_ease(text: str) -> float | None:
    """206.835 - 1.015 * words / sentences - 84.6 * syllables / words (Flesch 1948): high where a text is easy.

    Sentences are what ends before white space with . ! ? or an ellipsis, and what follows the last, if they hold a
    word. Syllables are counted by the spelling of English. None without a word.
    """
    words = _WORD.findall(text)
    if not words:
        return None
    sentences = sum(1 for part in _SENTENCE_END.split(text) if _WORD.search(part))
    return 206.835 - 1.015 * len(words) / sentences - 84.6 * sum(map(syllables, words)) / len(words)


def syllables(word: str) -> int:
    """Groups of vowels, y among them, without a silent final e; at least one."""
    word = word.lower()
    groups = len(_VOWELS.findall(word))
    if _SILENT_E.search(word) and not _SYLLABIC_LE.search(word):
        groups -= 1
    return max(1, groups)


def lexical_diversity(text: str) -> float | None:
    """MTLD: the mean length in words of stretches whose share of distinct words stays at 0.72 or more, over both
    directions of reading (McCarthy and Jarvis 2010). None where no word comes twice.
    """
    words = [word.lower() for word in _WORD.findall(text)]
    factors = [_factors(words), _factors(reversed(words))]
    return sum(len(words) / number for number in factors) / 2 if all(factors) else None


def _factors(words: Iterable[str]) -> float:
    """Stretches that fell below the threshold, and the part of one that the last has come."""
    factors, length, distinct = 0.0, 0, set[str]()
    for word in words:
        length += 1
        distinct.add(word)
        if len(distinct) < MTLD_THRESHOLD * length:
            factors, length, distinct = factors + 1, 0, set()
    return factors + ((1 - len(distinct) / length) / (1 - MTLD_THRESHOLD) if length else 0.0)
