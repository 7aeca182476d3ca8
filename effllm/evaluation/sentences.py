"""Prose sentences out of documents that also hold code, tables and lists.

A benchmark of minimal pairs needs sentences whose only defect is the one made on purpose, so the rules here
prefer to lose a good sentence over keeping a fragment.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

MINIMUM_WORDS = 8
MAXIMUM_WORDS = 30
PLAIN_SHARE = 0.9

PLAIN_WORD = re.compile(r"[A-Za-z]+(?:['\u2019-][A-Za-z]+)*")
_TRIMMED = "\"'`*().,;:!?\u201c\u201d\u2018\u2019"
_BOUNDARY = re.compile(r"(?<=[.!?])\s+(?=[\"(`*]?[A-Z])")
_ABBREVIATIONS = {"e.g.", "i.e.", "etc.", "vs.", "cf.", "Mr.", "Mrs.", "Dr.", "St.", "No.", "Fig.", "p.", "pp."}
_CODE = re.compile(r"[{}<>=|\\@#$%^~_\[\]]|::|``|>>>|\.\.\.|https?:|www\.|\w\(|\w/\w")
_LIST_MARK = re.compile(r"\s*(?:[-*+\u2022o]|\d+[.)]|>>>|\.\.|:\w+:|@\w+)(?:\s|$)")


@dataclass(frozen=True)
class Sentence:
    """One sentence with single spaces between its words, and the one before it in the same paragraph, or ""."""

    text: str
    preceding: str


def prose_sentences(document: str) -> Iterator[Sentence]:
    """Yield the sentences of `document` that are prose of 8 to 30 words, in order.

    Prose starts with a capital, ends with a full stop, question or exclamation mark, holds no sign of code, and
    at least nine in ten of its words are plain words.
    """
    for paragraph in paragraphs(document):
        preceding = ""
        for text in split_sentences(paragraph):
            if is_prose(text):
                yield Sentence(text, preceding)
            preceding = text


def paragraphs(document: str) -> Iterator[str]:
    """Yield the paragraphs of running text, each on one line.

    A blank line or a change of indentation ends a paragraph. Lines that open a list entry, a directive or an
    interpreter session are left out with the paragraph they begin.
    """
    lines: list[str] = []
    indent = 0
    for line in [*document.splitlines(), ""]:
        depth = len(line) - len(line.lstrip())
        if lines and (not line.strip() or depth != indent):
            if not _LIST_MARK.match(lines[0]):
                yield " ".join(" ".join(lines).split())
            lines = []
        if line.strip():
            lines.append(line)
            # The first line of a docstring stands at the quotes, its continuation at the body's indentation.
            indent = depth


def split_sentences(paragraph: str) -> list[str]:
    """Split at a stop that is followed by a capital, except after common abbreviations."""
    sentences: list[str] = []
    for part in _BOUNDARY.split(paragraph):
        if sentences and sentences[-1].split()[-1].lstrip('("') in _ABBREVIATIONS:
            sentences[-1] = f"{sentences[-1]} {part}"
        elif part:
            sentences.append(part)
    return sentences


def is_prose(text: str) -> bool:
    """Whether `text` is one whole sentence of running language."""
    words = text.split()
    if not MINIMUM_WORDS <= len(words) <= MAXIMUM_WORDS:
        return False
    if not text[0].isupper() or text[-1] not in ".!?" or _CODE.search(text):
        return False
    if any(text.count(left) != text.count(right) for left, right in ("()", "\u201c\u201d")) or text.count('"') % 2:
        return False
    plain = sum(PLAIN_WORD.fullmatch(word.strip(_TRIMMED)) is not None for word in words)
    return plain >= PLAIN_SHARE * len(words)


def split_word(word: str) -> tuple[str, str, str]:
    """(punctuation before, core, punctuation after) of a word between spaces; the three joined are the word."""
    core = word.strip(_TRIMMED)
    start = word.index(core) if core else len(word)
    return word[:start], core, word[start + len(core) :]


def spelled(text: str) -> list[str]:
    """The lower-case letters-and-digits words of `text`: what two texts share whatever their punctuation."""
    return re.findall(r"[a-z0-9]+", text.lower())
