"""results/report.html as a target: of the tables that are asked for or there, and of no other."""

import copy
from typing import Any

import pytest

from effllm.tables.pairs import PAIR_COLUMNS
from effllm.tables.record import read_record, write_record
from tests.unit.report.hand_made import COLUMNS, pairs, table9, write_csv
from tests.workflow.conftest import Workdir, stand_in

REPORT = "results/report.html"


@pytest.fixture(scope="module")
def built(tiny_text: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Workdir:
    """The tiny study with a stand-in for every result."""
    return stand_in(tmp_path_factory.mktemp("built"), tiny_text)


def test_it_adds_one_node_to_the_tables_that_it_is_asked_for_with(workdir: Workdir) -> None:
    table = workdir.planned("results/table9.csv")
    assert "table9.csv" in table
    assert workdir.planned("results/table9.csv", REPORT) == table | {"table9-pairs.csv", "report.html"}


def test_alone_it_shows_what_is_there_and_up_to_date(built: Workdir) -> None:
    assert built.planned(REPORT) == {"report.html"}


def test_stale_tables_stay_out_of_it(built: Workdir) -> None:
    edited = Workdir(built.path, copy.deepcopy(built.study))
    edited.study["models"]["llama-1m"]["label"] = "another label"
    edited.write()
    try:
        assert "table9.csv" in edited.planned("results/table9.csv")
        assert edited.planned(REPORT) == {"report.html"}
    finally:
        built.write()


def test_a_run_writes_it_of_one_table_and_then_has_nothing_to_do(built: Workdir) -> None:
    results = built.path / "results"
    for path in results.glob("*.csv"):
        if path.stem not in ("table9", "table9-pairs"):
            path.unlink()
    for name, columns, rows in (("table9", COLUMNS, table9()), ("table9-pairs", PAIR_COLUMNS, pairs(table9()))):
        record = read_record(results / f"{name}.csv")
        write_csv(results / f"{name}.csv", columns, rows)
        write_record(results / f"{name}.csv", {key: record[key] for key in ("spec", "inputs")})
    built.snakemake(REPORT)
    page = (built.path / REPORT).read_text()
    assert "Table 9: quantization" in page and "Table 3" not in page
    assert "Change against the baseline" in page and "results/claims.csv" in page, "what was not built is named"
    assert built.planned(REPORT) == set()
