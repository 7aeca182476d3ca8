"""Descriptions of tables: each says of each of its columns what it is for a decision."""

from pathlib import Path

import pytest

from effllm.assembly.assemble import ASSEMBLERS, assemble, write_csv
from effllm.decision.rows import read_table
from effllm.tables.descriptions import DESCRIPTIONS
from effllm.tables.paired import pairs_of
from tests.conftest import REPOSITORY
from tests.unit.tables.conftest import Study

COMMITTED = sorted((REPOSITORY / "docs" / "results").glob("*/table*.csv"))


def test_every_table_but_those_made_of_others_is_described() -> None:
    made_of_tables = {"pairs", "ranks", "comparison", "claims", "crossover", *map(pairs_of, DESCRIPTIONS)}
    made_of_others = {"validity", "scaling", *made_of_tables}
    assert DESCRIPTIONS.keys() == ASSEMBLERS.keys() - made_of_others


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_what_a_description_names_it_declares(name: str) -> None:
    description = DESCRIPTIONS[name]
    declared = [column.name for column in description.declared]
    assert len(declared) == len(set(declared))
    by_name = {column.name: column for column in description.declared}
    assert [by_name[key].role for key in description.names] == ["name"] * len(description.names)
    assert by_name[description.quality].role == "quality"
    assert {by_name[cost].role for cost in description.costs} <= {"cost"}
    named = [*description.scope, *description.workloads.values(), *description.workloads]
    named += [condition for column in description.declared for condition in column.conditions]
    assert set(named) <= set(by_name)
    for column in description.declared:
        directed = column.better is not None or column.direction is not None
        assert directed == (column.role in ("quality", "cost")), column.name


@pytest.mark.parametrize("name", ["table9", "table16"])
def test_every_column_of_a_table_is_described(name: str, study: Study) -> None:
    header = list(study.rows(name)[0])
    assert list(DESCRIPTIONS[name].columns(header)) == header


def test_scores_are_better_the_way_that_their_metric_says(study: Study, tmp_path: Path) -> None:
    for name, scores in (
        ("table9", {"adjacent-swap_score": "higher", "perplexity_score": "lower", "average_performance": "higher"}),
        ("table16", {"Adjacent swap": "higher", "Held-out text": "lower", "mean": "higher"}),
    ):
        path = tmp_path / f"{name}.csv"
        write_csv(assemble(name, study.graph.table_spec(name), study.graph.table_parents(name)), path)
        table = read_table(path)
        assert {score: table.direction(score) for score in scores} == scores
        for score in scores:
            figure = table.rows[0].figures[score]
            assert figure.low is not None and figure.low < figure.value < figure.high


def test_the_workloads_of_a_table_are_those_of_its_columns(study: Study) -> None:
    columns = DESCRIPTIONS["table9"].columns(list(study.rows("table9")[0]))
    assert columns["batch_latency_ms"].text == "latency (batch)"
    assert columns["first_token_ms_p50"].text == "time to the first token (median)"
    assert columns["batch_status"].role == "status"


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.relative_to(COMMITTED[0].parents[1]).as_posix())
def test_every_column_of_the_committed_tables_is_described(path: Path) -> None:
    header = path.read_text().partition("\n")[0].split(",")
    table = read_table(path)
    assert list(table.columns) == header
    assert table.description is DESCRIPTIONS[path.stem]
