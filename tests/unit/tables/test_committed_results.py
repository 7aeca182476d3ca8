"""docs/results: measured tables that say what was not measured, and nothing about the machine beyond its device."""

import csv
import json
import re
from pathlib import Path
from typing import get_args

import pytest

from effllm.errors import Status
from tests.conftest import REPOSITORY

RESULTS = REPOSITORY / "docs" / "results"
TABLES = sorted(RESULTS.glob("*/table*.csv"))
PATH_OF_A_MACHINE = re.compile(r"(^|[\s\"'=])/[a-z]+/|GPU-[0-9a-f]{8}-")


def _name(path: Path) -> str:
    return path.relative_to(RESULTS).as_posix()


@pytest.mark.parametrize("path", TABLES, ids=_name)
def test_random_weights_have_no_quality_and_every_row_says_how_it_ended(path: Path) -> None:
    with open(path, newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert rows
    for row in rows:
        assert row["status"] in get_args(Status)
        quality = [name for name in row if name.startswith(("PPL", "loss", "held_out_", "average_performance"))]
        assert quality
        assert not any(row[name] for name in quality)
        assert all(name in row["not_measured"] for name in quality)
        assert row["status"] == "ok" or row["reason"]


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*/*.[cj]s*")), ids=_name)
def test_no_path_or_card_of_the_machine_is_committed(path: Path) -> None:
    text = path.read_text()
    if path.suffix == ".json":
        json.loads(text)
    assert not PATH_OF_A_MACHINE.search(text)
