"""Marks that would cover each other move apart, and not further than they must."""

from hypothesis import given
from hypothesis import strategies as st

from effllm.report.dodging import MOST_MARKS, dodged

PLACES = st.lists(st.tuples(st.floats(60, 310), st.floats(40, 220)), max_size=40)


@given(PLACES)
def test_a_moved_mark_covers_none_before_it_and_stays_near(places: list[tuple[float, float]]) -> None:
    xs = dodged(places, 55, 315)
    for index, (x, (home, y)) in enumerate(zip(xs, places, strict=True)):
        assert abs(x - home) <= 55
        if x != home:
            assert 55 <= x <= 315
            before = zip(xs[:index], places[:index], strict=True)
            assert all((x - other) ** 2 + (y - other_y) ** 2 >= 10**2 for other, (_, other_y) in before)


def test_marks_that_are_apart_stay() -> None:
    places = [(100.0, 100.0), (112.0, 100.0), (100.0, 112.0)]
    assert dodged(places, 55, 315) == [x for x, _ in places]


def test_five_marks_on_one_spot_are_all_seen() -> None:
    xs = dodged([(150.0, 100.0)] * 5, 55, 315)
    assert sorted(xs) == [128, 139, 150, 161, 172]


def test_a_cloud_stays_where_it_is() -> None:
    places = [(150.0, 100.0)] * (MOST_MARKS + 1)
    assert set(dodged(places, 55, 315)) == {150.0}
