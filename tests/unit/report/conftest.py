"""Pages of results written by hand."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from effllm.report.command import write_report
from tests.unit.report.hand_made import write_results

Pages = Callable[..., Path]


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Pages:
    """Writes results with the rows that it is given, and their report; each set of arguments once."""

    def write(rows: Sequence[Mapping[str, Any]] | None = None, **budget: Any) -> Path:
        directory = write_results(tmp_path_factory.mktemp("results") / "results", rows)
        output = directory / "report.html"
        write_report(directory, output, {"table9": budget} if budget else {})
        return output

    return write


@pytest.fixture(scope="session")
def page(pages: Pages) -> Path:
    """The report of the rows by hand."""
    return pages()
