"""Plan a study, follow its run, and decide from its tables. Snakemake runs it: see README.md."""

import argparse
import importlib
import json
import os
import select
import sys
from collections.abc import Callable
from pathlib import Path

from effllm import __version__
from effllm.command_line import Parser, one_of
from effllm.errors import EXIT_USER_ERROR, UserError
from effllm.runtime.faults import fault_of_machine, require_address_space

# What a shell reports of a command that SIGPIPE ended.
_EXIT_BROKEN_PIPE = 141
# Commands with a module of their own, which has `register(command)`: its options and what runs.
_MODULES = {
    "init": ("effllm.init.command", "write a study of your own models, or the one that answers a question"),
    "plan": ("effllm.planning.plan", "say what a target costs before anything runs"),
    "fetch": ("effllm.planning.fetch", "download what targets need from the hub, before they run"),
    "status": ("effllm.planning.status", "list what exists, what is stale and why, and what failed"),
    "verify": ("effllm.planning.verify", "check every artifact and table against its digests"),
    "report": ("effllm.report.command", "write results as one HTML file, or compare two of them"),
    "recommend": (
        "effllm.decision.recommend_command",
        "say which row of a table to take under limits, and why not the others",
    ),
    "crossover": ("effllm.decision.crossover_command", "say from which model size on a precision saves something"),
    "rank": ("effllm.decision.rank_command", "rank rows within each model or size, with ties"),
}


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and run one command; exits 2 with a sentence on a user's error."""
    argv = sys.argv[1:] if argv is None else argv
    parser = Parser(prog="effllm", description=__doc__)
    parser.add_argument("--version", action="version", version=f"effllm {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (register, text) in _COMMANDS.items():
        register(commands.add_parser(name, help=text, description=_sentence(text)))
    for name, (module, text) in _MODULES.items():
        command = commands.add_parser(name, help=text, description=_sentence(text))
        # Only the command that was called is imported: a study's types alone take most of a second.
        if name in argv:
            importlib.import_module(module).register(command)
    try:
        arguments = parser.parse_args(argv)
        code = arguments.run(arguments)
        # What is still buffered is written here, where a reader that has gone is expected.
        sys.stdout.flush()
        sys.exit(code)
    except BrokenPipeError:
        # Of a socket or a process of its own it is a defect, which keeps its traceback.
        if not _reader_is_gone():
            raise
        # `effllm ... | head` ends quietly, as other commands do; the interpreter flushes once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(_EXIT_BROKEN_PIPE)
    # Panics of libraries in Rust are no Exception.
    except BaseException as error:
        sentence = error if isinstance(error, UserError) else fault_of_machine(error, Path.cwd())
        if sentence is None:
            raise
        print(f"error: {sentence}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)


def _reader_is_gone() -> bool:
    """Whether what this program prints is read by nobody any more."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _register_check(command: argparse.ArgumentParser) -> None:
    command.add_argument("study", type=Path, help="study file, such as config/tiny.yaml")
    command.add_argument(
        "--resolved", action="store_true", help="print the study with `extends` and `like` written out"
    )
    command.set_defaults(run=lambda arguments: check(arguments.study, arguments.resolved))


def _register_schema(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "what",
        type=one_of("effllm schema:", _SCHEMAS),
        metavar=f"{{{','.join(_SCHEMAS)}}}",
        nargs="?",
        default="study",
        help="which schema (default: study)",
    )
    command.add_argument("--output", type=Path, help="file to write (default: the terminal)")
    command.set_defaults(run=lambda arguments: schema(arguments.what, arguments.output))


def _register_show(command: argparse.ArgumentParser) -> None:
    command.add_argument("table", type=Path, help="results/table<N>.csv")
    command.add_argument("--all", action="store_true", help="print every column, a block per row")
    command.set_defaults(run=lambda arguments: show(arguments.table, arguments.all))


def _register_devices(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print JSON instead of text")
    command.set_defaults(run=lambda arguments: devices(arguments.json))


_COMMANDS: dict[str, tuple[Callable[[argparse.ArgumentParser], None], str]] = {
    "check": (_register_check, "check a study's configuration, or print it written out"),
    "schema": (_register_schema, "write the JSON schema of studies or of results"),
    "show": (_register_show, "print a table"),
    "devices": (_register_devices, "list what this machine can measure, and what each figure means"),
}


def check(path: Path, resolved: bool) -> int:
    """Say what a study holds (or print it written out), or what is wrong with it."""
    from effllm.stages import STAGES
    from effllm.stages.graph import Graph
    from effllm.study import load_study
    from effllm.study.inheritance import written_as_yaml
    from effllm.tables.paired import pairs_of

    study = load_study(path)
    graph = Graph(study)
    graph.check_files()
    if resolved:
        print(written_as_yaml(path), end="")
        return 0
    print(f"{path}: the study {study.name!r} is valid.")
    for stage in STAGES:
        ids = graph.ids(stage)
        print(f"  {stage:12} {len(ids):4}  {', '.join(ids[:4])}{', ...' if len(ids) > 4 else ''}")
    print(f"  tables             {', '.join(name for name in graph.tables() if not name.endswith(pairs_of('')))}")
    return 0


def schema(what: str, output: Path | None) -> int:
    """A JSON schema, or the page of the results' keys, generated from the types."""
    from effllm.runtime.artifact import write_text

    text = _SCHEMAS[what]()
    if output:
        write_text(output, text)
    else:
        print(text, end="")
    return 0


def schema_text() -> str:
    """What config/schema.json holds."""
    from effllm.study.load import study_schema

    return json.dumps(study_schema(), indent=1) + "\n"


def results_schema_text() -> str:
    """What config/results.schema.json holds."""
    from effllm.results.reference import results_schema

    return json.dumps(results_schema(), indent=1) + "\n"


def results_page_text() -> str:
    """What docs/reference/results.md holds."""
    from effllm.results.reference import results_page

    return results_page()


_SCHEMAS: dict[str, Callable[[], str]] = {
    "study": schema_text,
    "results": results_schema_text,
    "results-page": results_page_text,
}


def show(path: Path, every_column: bool) -> int:
    """Print a table, or all of it row by row."""
    from effllm.tables.show import print_blocks, print_table

    if not path.is_file():
        raise UserError(f"{path} does not exist; build it first: snakemake --profile profiles/local {path}.")
    (print_blocks if every_column else print_table)(path)
    return 0


def devices(as_json: bool) -> int:
    """The instruments of this machine."""
    from effllm.telemetry import describe_devices, describe_devices_json
    from effllm.telemetry.busy import busy_sentence

    require_address_space()
    sentence = busy_sentence("cuda:0")
    if as_json:
        print(json.dumps(describe_devices_json() | {"busy": sentence}, indent=1))
    else:
        print(describe_devices())
        print(f"\n{sentence or 'No other load is seen on this machine.'}")
    return 0


if __name__ == "__main__":
    main()
