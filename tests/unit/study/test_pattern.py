"""The pattern of a stage's ids admits exactly them, and does not grow with their number."""

import re
from itertools import product

import pytest

from effllm.study.pattern import id_pattern


@pytest.mark.parametrize(
    "ids",
    [
        ["a"],
        ["qwen2.5-7b", "phi-4", "yi-34b"],
        ["qwen2.5-7b.int4", "qwen2.5-7b.bfloat16", "phi-4.int4", "phi-4.bfloat16"],
        ["a.b.c", "a.b", "a", "b.c"],
        ["a.x.lora", "b.x.lora", "a.y.lora", "a.x.full"],
    ],
)
def test_the_pattern_admits_exactly_the_ids(ids: list[str]) -> None:
    pattern = re.compile(id_pattern(ids))
    pieces = sorted({piece for id in ids for piece in id.split(".")})
    candidates = {".".join(parts) for length in (1, 2, 3, 4) for parts in product(pieces, repeat=length)} | set(ids)
    assert {candidate for candidate in candidates if pattern.fullmatch(candidate)} == set(ids)


def test_no_ids_match_nothing() -> None:
    assert not re.fullmatch(id_pattern([]), "")


def test_the_pattern_of_a_product_is_as_long_as_its_factors() -> None:
    models = [f"model-{number}" for number in range(100)]
    ids = [f"{model}.{precision}.{benchmark}" for model in models for precision in "abc" for benchmark in "uvwxyz"]
    assert len(id_pattern(ids)) < 2 * len("|".join(models))
