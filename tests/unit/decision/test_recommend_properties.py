"""What holds of every recommendation, whatever the table."""

import math
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from effllm.decision.budget import Limit
from effllm.decision.choice import Field, Rules
from effllm.decision.dominance import members
from effllm.decision.query import Query
from effllm.decision.recommend import Recommendation, recommend
from effllm.decision.rows import Figure, Table
from tests.unit.decision.tables import COSTS, QUALITY, tables

BOUNDS = st.sampled_from((1.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0))


@st.composite
def queries(draw: st.DrawFn) -> Query:
    limited = draw(st.lists(st.sampled_from((*COSTS, QUALITY)), unique=True, max_size=2))
    return Query(
        limits=tuple(
            Limit(name, "min" if name == QUALITY else "max", 9 - draw(BOUNDS) if name == QUALITY else draw(BOUNDS))
            for name in limited
        ),
        quality_loss=draw(st.sampled_from((0.0, 50.0, 150.0))),
        prefer=tuple(draw(st.lists(st.sampled_from(COSTS), unique=True, max_size=2))),
        margin=draw(st.sampled_from((0.0, 0.05, 0.3))),
        across_cards=draw(st.booleans()),
    )


def recommended(found: Recommendation) -> set[str]:
    return {judged.row.name for answer in found.scopes for judged in answer.recommended}


def field_of(table: Table, query: Query) -> Field:
    rules = Rules(query.limits, QUALITY, query.quality_loss, COSTS, query.margin, query.prefer)
    return Field(table, [row for row in table.rows if row.status == "ok"], rules)


@given(tables(), queries(), st.sampled_from((0.0, 0.5, 1.0, 3.0)))
def test_relaxing_a_limit_never_loses_a_fit(table: Table, query: Query, more: float) -> None:
    assume(query.limits)
    field = field_of(table, query)
    first, *rest = query.limits
    relaxed = replace(first, bound=first.bound + (more if first.kind == "max" else -more))
    before, after = field.fitting(query.limits), field.fitting([relaxed, *rest])
    assert before & ~after == 0
    assert field.fitting(rest) & after == after, "nor does leaving it out"


@given(tables(), queries(), st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(table: Table, query: Query, random: object) -> None:
    shuffled = list(table.rows)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    one, other = recommend(table, query), recommend(replace(table, rows=tuple(shuffled)), query)
    assert recommended(one) == recommended(other)
    assert one.exit_code == other.exit_code

    def judgements(found: Recommendation) -> list[object]:
        return sorted(
            (
                [(judged.row.name, judged.verdict, judged.loss) for judged in sorted(a.rows, key=lambda j: j.row.name)],
                a.outcome,
                [(p.column, p.sign, p.bound, {row.name for row in p.rows}) for p in a.breakpoints],
                [r.limits for r in a.relaxations if len(r.limits) == 1],
            )
            for a in found.scopes
        )

    assert judgements(one) == judgements(other)


@given(tables(), st.sampled_from((0.0, 0.05, 0.3)), st.sampled_from((0.0, 0.05, 0.3)))
def test_beating_has_no_circle_and_a_larger_margin_recommends_no_fewer(table: Table, one: float, other: float) -> None:
    narrow, wide = (field_of(table, Query(margin=margin)) for margin in sorted((one, other)))
    for i, beating in enumerate(narrow.beaten_by):
        reached, waiting = 0, beating
        while waiting:
            reached |= waiting
            waiting = 0
            for j in members(reached):
                waiting |= narrow.beaten_by[j] & ~reached
        assert not reached >> i & 1, f"row {i} beats itself"
    everything = narrow.everything
    kept = narrow.choose(everything).unbeaten
    assert kept & ~wide.choose(everything).unbeaten == 0
    assert kept or not everything


@given(tables(), st.sampled_from((0.0, 0.05, 0.3)))
def test_sets_of_bits_are_what_pairs_of_rows_say(table: Table, margin: float) -> None:
    field = field_of(table, Query(margin=margin))

    def surely(one: Figure | None, other: Figure | None) -> bool:
        return (
            one is not None
            and other is not None
            and one.highest < other.lowest
            and one.value < other.value - margin * abs(other.value)
        )

    for i, row in enumerate(field.rows):
        for j, other in enumerate(field.rows):
            pairs = [(other.figures.get(cost), row.figures.get(cost)) for cost in field.costs]
            everywhere = all(a is not None and b is not None and a.value <= b.value for a, b in pairs)
            beats = everywhere and any(surely(a, b) for a, b in pairs)
            assert bool(field.beaten_by[i] >> j & 1) == beats


@given(tables(), queries())
def test_only_rows_that_are_ok_and_fit_all_limits_are_recommended(table: Table, query: Query) -> None:
    found = recommend(table, query)
    by_name = {row.name: row for row in table.rows}
    for name in recommended(found):
        row = by_name[name]
        assert row.status == "ok"
        for limit in query.limits:
            figure = row.figures[limit.column]
            assert (figure.highest <= limit.bound) if limit.kind == "max" else (figure.lowest >= limit.bound)
    listed = {judged.row.name for answer in found.scopes for judged in answer.rows}
    listed |= {judged.row.name for judged in found.no_result}
    assert listed == set(by_name), "every row is told of"
    if any(answer.outcome in ("one", "several") for answer in found.scopes) and not found.compares_nothing:
        assert found.exit_code == 0
    else:
        assert found.exit_code in (3, 4)


@given(tables(), queries(), st.sampled_from((*COSTS, QUALITY)))
def test_what_is_missing_never_counts_as_nought(table: Table, query: Query, column: str) -> None:
    """A row that loses a figure fits no limit on it, beats nobody by it and is beaten by nobody through it."""
    assume(any(limit.column == column for limit in query.limits))
    blind = replace(table.rows[0], figures={k: v for k, v in table.rows[0].figures.items() if k != column})
    found = recommend(replace(table, rows=(blind, *table.rows[1:])), query)
    assert blind.name not in recommended(found)
    for answer in found.scopes:
        for judged in answer.rows:
            if judged.row.name == blind.name:
                assert judged.verdict in ("not measured", "exceeds")
    field = field_of(replace(table, rows=(blind, *table.rows[1:])), query)
    if column in field.costs:
        for i, row in enumerate(field.rows):
            if row is blind:
                assert field.beaten_by[i] == 0
                assert not any(beating >> i & 1 for beating in field.beaten_by)


@given(tables(), queries())
def test_breakpoints_are_exact(table: Table, query: Query) -> None:
    found = recommend(table, query)
    for answer in found.scopes:
        current = {judged.row.name for judged in answer.recommended}
        alone = replace(table, rows=answer.scope.rows)
        for point in answer.breakpoints:

            def at(bound: float, alone: Table = alone, point: object = point) -> set[str]:
                changed = Limit(point.column, point.kind, bound)  # type: ignore[attr-defined]
                others = [x for x in query.limits if (x.column, x.kind) != (changed.column, changed.kind)]
                return recommended(recommend(alone, replace(query, limits=(*others, changed))))

            becomes = {row.name for row in point.rows}
            assert becomes != current
            if point.sign in (">=", "<="):
                before = math.nextafter(point.bound, -math.inf if point.sign == ">=" else math.inf)
                assert (at(before), at(point.bound)) == (current, becomes)
            else:
                after = math.nextafter(point.bound, -math.inf if point.sign == "<" else math.inf)
                assert (at(point.bound), at(after)) == (current, becomes)


@given(tables(), queries())
def test_the_smallest_relaxation_lets_something_in_and_a_smaller_one_does_not(table: Table, query: Query) -> None:
    for answer in recommend(table, query).scopes:
        alone = replace(table, rows=answer.scope.rows)
        for relaxation in answer.relaxations:
            changed = {(limit.column, limit.kind): limit for limit in relaxation.limits}
            limits = tuple(changed.get((limit.column, limit.kind), limit) for limit in query.limits)
            field = field_of(alone, replace(query, limits=limits))
            assert {row.name for row in relaxation.rows} == {
                field.rows[i].name for i in members(field.choose(field.fitting(limits)).chosen)
            }
            assert relaxation.rows
            if len(relaxation.limits) == 1:
                (limit,) = relaxation.limits
                away = -math.inf if limit.kind == "max" else math.inf
                smaller = replace(limit, bound=math.nextafter(limit.bound, away))
                fewer = [smaller if (x.column, x.kind) == (limit.column, limit.kind) else x for x in query.limits]
                assert field.fitting(fewer) == 0


@pytest.mark.parametrize("margin", [0.0, 0.02, 0.05])
def test_a_margin_is_monotone_where_the_obvious_rule_was_not(margin: float) -> None:
    """Not surely worse everywhere, surely better somewhere kept 5, 3 and 5 rows at margins of 0, 2 and 5 %."""
    from effllm.decision.rows import read_table
    from tests.conftest import REPOSITORY

    table = read_table(REPOSITORY / "docs" / "results" / "h100" / "table7.csv")
    kept = [len(recommended(recommend(table, Query(margin=m)))) for m in (margin, 0.1, 0.2)]
    assert kept == sorted(kept)
