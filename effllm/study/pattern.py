"""One short regular expression for all ids of a stage."""

import re
from collections.abc import Iterable


def id_pattern(ids: Iterable[str]) -> str:
    """A pattern that matches the ids whole and nothing else; one that matches nothing for no ids.

    Ids are products, such as `<model>.<precision>.<benchmark>`. The pattern is their product too, so its length grows
    with the number of models and not of nodes: Snakemake copies it for every job.
    """
    whole: list[str] = []
    endings: dict[str, list[str]] = {}
    for id in dict.fromkeys(ids):
        head, dot, ending = id.rpartition(".")
        if dot:
            endings.setdefault(ending, []).append(head)
        else:
            whole.append(re.escape(id))
    by_heads: dict[tuple[str, ...], list[str]] = {}
    for ending, heads in endings.items():
        by_heads.setdefault(tuple(heads), []).append(re.escape(ending))
    parts = [rf"{_either([id_pattern(heads)])}\.{_either(ends)}" for heads, ends in by_heads.items()]
    return "|".join([*whole, *parts]) or "(?!)"


def _either(patterns: list[str]) -> str:
    return f"(?:{'|'.join(patterns)})"
