"""`effllm report`: a results directory as one HTML file, or two of them compared."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from effllm.errors import UserError
from effllm.report.blocks import Page
from effllm.report.html import html_of
from effllm.report.page import page_of
from effllm.report.run import read_run
from effllm.report.two_runs import page_of_two
from effllm.runtime import lifeline
from effllm.runtime.artifact import write_text
from effllm.runtime.faults import fault_of_machine
from effllm.runtime.launch import end_with
from effllm.runtime.stage import SCRATCH

NAME = "report.html"


def register(command: argparse.ArgumentParser) -> None:
    """Add the command's options to its parser."""
    command.add_argument(
        "results", nargs="*", type=Path, default=[Path("results")], help="a directory with tables, or two to compare"
    )
    command.add_argument("--study", type=Path, help="the study whose budgets count; none if left out")
    command.add_argument("--output", type=Path, help=f"file to write; {NAME} in the (last) directory if left out")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the page and say where it is; always 0."""
    directories = arguments.results
    output = arguments.output or directories[-1] / NAME
    if len(directories) > 2:
        raise UserError(f"{len(directories)} directories were given; give one, or two to compare.")
    if len(directories) == 2:
        if arguments.study:
            raise UserError("--study was given with two directories, which are compared under no budget; leave it out.")
        _write(page_of_two(*map(read_run, directories)), output)
    else:
        write_report(directories[0], output, budgets_of(arguments.study) if arguments.study else {})
    print(f"{output}: {output.stat().st_size / 1000:,.0f} kB, one file to open or to forward.")
    return 0


def budgets_of(study: Path) -> dict[str, dict[str, Any]]:
    """The budgets of a study by table."""
    from effllm.stages.graph import Graph
    from effllm.study import load_study

    return Graph(load_study(study)).budgets()


def write_report(directory: Path, output: Path, budgets: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the page of a results directory to `output`, whole or not at all.

    budgets: those of the study by table, each as `effllm.study.budgets.Budget` has them.
    """
    _write(page_of(read_run(directory), budgets), output)


def _write(page: Page, output: Path) -> None:
    if not output.parent.is_dir():
        raise UserError(f"{output.parent} is no directory; make it, or name another --output.")
    write_text(output, html_of(page))


def write_report_of_tables(
    tables: Sequence[str], *, budgets: Mapping[str, Mapping[str, Any]], output: str, log: str
) -> None:
    """Write the page of some CSVs of one directory for the workflow; exits with a sentence on a user's error."""
    path = Path(output)
    try:
        lifeline.attach(path.parent / SCRATCH)
        run = read_run(path.parent, {Path(table).stem for table in tables})
        write_text(path, html_of(page_of(run, budgets)))
        Path(log).write_text(f"{len(run.tables)} tables, {path.stat().st_size} bytes\n")
    # Panics of libraries in Rust are no Exception.
    except BaseException as error:
        sentence = error if isinstance(error, UserError) else fault_of_machine(error, path)
        if sentence is None:
            raise
        end_with(sentence, "report", Path(log))
