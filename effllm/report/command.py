"""`effllm report`: a results directory as one HTML file."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from effllm.errors import UserError
from effllm.report.html import html_of
from effllm.report.page import page_of
from effllm.report.run import read_run
from effllm.runtime.artifact import write_text

NAME = "report.html"


def register(command: argparse.ArgumentParser) -> None:
    """Add the command's options to its parser."""
    command.add_argument("results", nargs="?", type=Path, default=Path("results"), help="a directory with tables")
    command.add_argument("--study", type=Path, help="the study whose budgets count; none if left out")
    command.add_argument("--output", type=Path, help=f"file to write; {NAME} in the directory if left out")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the page and say where it is; always 0."""
    output = arguments.output or arguments.results / NAME
    write_report(arguments.results, output, budgets_of(arguments.study) if arguments.study else {})
    print(f"{output}: {output.stat().st_size / 1000:,.0f} kB, one file to open or to forward.")
    return 0


def budgets_of(study: Path) -> dict[str, dict[str, Any]]:
    """The budgets of a study by table."""
    from effllm.study import load_study

    return {name: budget.plain() for name, budget in load_study(study).budgets.items()}


def write_report(directory: Path, output: Path, budgets: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the page of a results directory to `output`, whole or not at all.

    budgets: those of the study by table, each as `effllm.study.budgets.Budget` has them.
    """
    page = page_of(read_run(directory), budgets)
    if not output.parent.is_dir():
        raise UserError(f"{output.parent} is no directory; make it, or name another --output.")
    write_text(output, html_of(page))
