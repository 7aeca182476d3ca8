"""The options that name a study and its results, for the commands that look at both."""

import argparse
from pathlib import Path

from effllm.stages.graph import Graph
from effllm.study import load_study

DEFAULT_STUDY = Path("config/tiny.yaml")


def add_study(command: argparse.ArgumentParser) -> None:
    """`--study` and `--results`; the defaults are the workflow's own, run from the checkout."""
    command.add_argument("--study", type=Path, default=DEFAULT_STUDY, help="study file (default: %(default)s)")
    command.add_argument("--results", type=Path, default=Path("results"), help="artifacts (default: %(default)s)")


def graph_of(arguments: argparse.Namespace) -> Graph:
    """The study's graph over its results; `UserError` for a bad study or a local file that does not exist."""
    graph = Graph(load_study(arguments.study), str(arguments.results))
    graph.check_files()
    return graph
