"""`effllm recommend`: which row of a table to take under limits, and why not the others."""

import argparse
import functools
import json
from pathlib import Path

from effllm.command_line import number
from effllm.decision.budget import Kind
from effllm.decision.query import MARGIN, Query, check_workload, explained, parse_limits, resolve
from effllm.decision.recommend import recommend
from effllm.decision.recommend_json import plain
from effllm.decision.recommend_text import text_of
from effllm.decision.rows import read_table
from effllm.errors import UserError

_EXITS = (
    "Exit 0: answered. 2: a mistake in the question or a damaged table. 3: nothing fits. 4: what fits, or which of "
    "several to take, cannot be decided by these measurements. docs/answers.md says how decisions are made."
)


def register(command: argparse.ArgumentParser) -> None:
    """Add the options of the command, and what runs."""
    command.epilog = _EXITS
    command.add_argument("table", type=Path, help="results/table<N>.csv")
    texts: dict[Kind, str] = {"max": "the most that a cost may be", "min": "the least that a quality may be"}
    for kind, text in texts.items():
        command.add_argument(
            f"--{kind}",
            dest="limits",
            action="append",
            default=[],
            metavar="COLUMN=VALUE",
            type=functools.partial(_limit, kind),
            help=f"{text}, in the unit of the column; as often as needed",
        )
    command.add_argument(
        "--quality-loss",
        type=number("--quality-loss", "0.5"),
        default=0.0,
        metavar="L",
        help="what a row may surely lose against the best: points of a score, per cent of a loss or perplexity",
    )
    command.add_argument("--workload", metavar="W", help="judge by the figures of another workload of the table")
    command.add_argument("--model", metavar="M", help="only rows of this model (in Tables 3 to 6: of this size)")
    command.add_argument("--prefer", metavar="COLUMN[,...]", help="columns that decide among what is left, in order")
    command.add_argument(
        "--margin",
        type=number("--margin", "0.05"),
        default=MARGIN,
        help="share by which costs must differ to count as different (default: %(default)s)",
    )
    command.add_argument("--explain", metavar="NAME", help="everything about the rows with this in their name")
    command.add_argument(
        "--across-cards", action="store_true", help="compare rows that ran on different cards of one kind"
    )
    command.add_argument("--json", action="store_true", help="the same, as config/recommendation.schema.json says")
    command.set_defaults(run=run)


def _limit(kind: Kind, text: str) -> tuple[Kind, str]:
    return kind, text


def run(arguments: argparse.Namespace) -> int:
    """Print the answer; its exit code."""
    table = read_table(arguments.table)
    if not 0 <= arguments.margin < 1:
        raise UserError(f"--margin {arguments.margin:g}: write a share of at least 0 and below 1, such as 0.05.")
    if not 0 <= arguments.quality_loss < float("inf"):
        raise UserError(f"--quality-loss {arguments.quality_loss:g}: write a number of at least 0.")
    if arguments.workload:
        check_workload(table, arguments.workload)
    preferred = [name for name in (arguments.prefer or "").split(",") if name]
    query = Query(
        limits=parse_limits(table, arguments.limits, arguments.workload),
        quality_loss=arguments.quality_loss,
        workload=arguments.workload,
        model=arguments.model,
        prefer=tuple(resolve(table, name.strip(), arguments.workload, "--prefer") for name in preferred),
        margin=arguments.margin,
        explain=arguments.explain,
        across_cards=arguments.across_cards,
    )
    if query.explain is not None:
        explained(table.rows, query.explain)
    found = recommend(table, query)
    print(json.dumps(plain(found), indent=1, ensure_ascii=False) if arguments.json else text_of(found), end="")
    if arguments.json:
        print()
    return found.exit_code
