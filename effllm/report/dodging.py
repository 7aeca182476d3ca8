"""Marks that cover each other move sideways, so that each is seen; a short line leads back to where it belongs."""

from collections.abc import Sequence

MOST_MARKS = 100
"""Beyond so many marks a chart is a cloud: they stay where they are."""
_APART = 11.0
_SIDE_STEPS = (0, 1, -1, 2, -2, 3, -3, 4, -4, 5, -5)


def dodged(places: Sequence[tuple[float, float]], left: float, right: float) -> list[float]:
    """The horizontal pixel of every mark: its own, or the nearest to it at which it covers no mark before it.

    A mark stays between `left` and `right`, moves by 55 pixels at most, and stays where it is if nothing is free.
    """
    if len(places) > MOST_MARKS:
        return [x for x, _ in places]
    placed: list[tuple[float, float]] = []
    for x, y in places:
        candidates = [x + step * _APART for step in _SIDE_STEPS]
        free = (
            other
            for other in candidates
            if left <= other <= right and all(_are_apart(other, y, taken) for taken in placed)
        )
        placed.append((next(free, x), y))
    return [x for x, _ in placed]


def _are_apart(x: float, y: float, other: tuple[float, float]) -> bool:
    return (x - other[0]) ** 2 + (y - other[1]) ** 2 >= (_APART - 0.5) ** 2
