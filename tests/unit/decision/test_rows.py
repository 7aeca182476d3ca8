"""Rows from CSV files: what is missing stays missing, what is damaged ends in a sentence."""

import csv
import re
from pathlib import Path

import pytest

from effllm.decision.rows import Figure, read_table
from effllm.errors import UserError
from tests.conftest import REPOSITORY

H100 = REPOSITORY / "docs" / "results" / "h100"
HEADER = (
    "model,precision,average_performance,average_performance_low,average_performance_high,MCR,latency_ms,"
    "latency_ms_low,latency_ms_high,device,status,reason,not_measured\n"
)
ROW = 'M,int4,0.5,0.4,0.6,4,10,9,11,a CPU,ok,"","energy_J_per_token, AEC_W: no sensor | MCR: why: not"\n'


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "table9.csv"
    path.write_text(text)
    return path


def test_figures_have_their_intervals_and_texts_stay_texts(tmp_path: Path) -> None:
    (row,) = read_table(write(tmp_path, HEADER + ROW)).rows
    assert row.name == "M int4"
    assert row.figures["average_performance"] == Figure(0.5, 0.4, 0.6)
    assert row.figures["MCR"] == Figure(4.0)
    assert (row.figures["MCR"].lowest, row.figures["MCR"].highest) == (4.0, 4.0)
    assert row.cells["device"] == "a CPU"
    assert row.status == "ok"
    assert row.why_missing("AEC_W") == "no sensor"
    assert row.why_missing("MCR") == "why: not"
    assert row.why_missing("weight_bytes") == "the table does not say why"


def test_an_interval_holds_its_value(tmp_path: Path) -> None:
    (row,) = read_table(write(tmp_path, HEADER + ROW.replace("10,9,11", "12,9,11"))).rows
    assert row.figures["latency_ms"] == Figure(12.0, 9.0, 12.0)


def test_one_end_alone_is_no_interval(tmp_path: Path) -> None:
    (row,) = read_table(write(tmp_path, HEADER + ROW.replace("10,9,11", "10,9,"))).rows
    assert row.figures["latency_ms"] == Figure(10.0)


@pytest.mark.parametrize("path", sorted(H100.glob("table*.csv")), ids=lambda path: path.stem)
def test_an_empty_cell_never_becomes_a_figure(path: Path) -> None:
    with open(path, newline="") as stream:
        lines = list(csv.DictReader(stream))
    table = read_table(path)
    assert len(table.rows) == len(lines)
    for line, row in zip(lines, table.rows, strict=True):
        for name, column in table.columns.items():
            if column.role in ("quality", "cost"):
                assert (name in row.figures) == (line[name] != "")
                if name in row.figures:
                    assert row.figures[name].value == float(line[name])
                else:
                    assert row.why_missing(name) != "the table does not say why"


def test_the_published_values_are_not_a_table_of_this_project() -> None:
    with pytest.raises(UserError, match=r"is none of this project's tables .*begins 'model,precision,metric,value"):
        read_table(REPOSITORY / "config" / "paper" / "table9.csv")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "its header begins ''"),
        (HEADER, "has no rows"),
        (HEADER.replace("status,", ""), "lacks the column 'status'"),
        (HEADER.replace("device", "latency_ms"), "the header names 'latency_ms' twice"),
        (HEADER + "M,int4\n", "row 1 has 2 cells where the header has 13"),
        (HEADER + ROW + ROW, "row 2 has the names of row 1, 'M int4'"),
        (HEADER + ROW.replace(",ok,", ",fine,"), "status is 'fine', which is none of ok, invalid"),
        (HEADER + ROW.replace("0.5,", "half,"), "average_performance is 'half', not a finite number"),
        (HEADER + ROW.replace("0.5,", "nan,"), "average_performance is 'nan'"),
        (HEADER + ROW.replace("10,9,11", "10,9,-inf"), "latency_ms_high is '-inf'"),
        (HEADER + ROW.replace("10,9,11", "10,11,9"), "latency_ms has the interval 11 to 9"),
        (HEADER + ROW.replace('"","', '"","x\ny')[:-3], "is not a whole CSV file"),
    ],
)
def test_a_damaged_table_ends_in_a_sentence(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(UserError, match=re.escape(says)) as caught:
        read_table(write(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text_end_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "table9.csv"
    path.write_bytes(HEADER.encode() + b"\xff\xfe\n")
    with pytest.raises(UserError, match="is not text in UTF-8"):
        read_table(path)


def test_a_missing_table_is_named_with_the_command_that_builds_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"does not exist; build it first: snakemake"):
        read_table(tmp_path / "table9.csv")
