"""Write a table as CSV from the artifacts of its rows, or from other tables.

python -m effllm.assembly.assemble table9 --spec spec.json --input evaluate=MANIFEST ... --output results/table9.csv
"""

import argparse
import io
import json
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import polars as pl

from effllm.assembly.decisions import claims, compared, crossovers, ranks
from effllm.decision.crossover import COLUMNS as CROSSOVER_COLUMNS
from effllm.errors import UserError
from effllm.runtime import lifeline
from effllm.runtime.artifact import write_text
from effllm.runtime.clock import await_inputs
from effllm.runtime.faults import fault_of_machine
from effllm.runtime.launch import end_with
from effllm.runtime.stage import SCRATCH
from effllm.tables.kinds import TABLES
from effllm.tables.paired import PAIRS, pairs_of
from effllm.tables.pairs import PAIR_COLUMNS, all_pairs, pairs
from effllm.tables.record import record_of, write_record
from effllm.tables.scaling import scaling_table
from effllm.tables.validity import COLUMNS, validity

Assembler = Callable[[Mapping[str, Any], Mapping[str, list[str]]], list[dict[str, Any]]]
ASSEMBLERS: dict[str, Assembler] = {
    **{name: entry.kind.assemble for name, entry in TABLES.items()},
    **{pairs_of(name): pairs for name in TABLES},
    PAIRS: all_pairs,
    "validity": validity,
    "scaling": scaling_table,
    "ranks": ranks,
    "comparison": compared,
    "claims": claims,
    "crossover": crossovers,
}
# Of tables that may have no row to take the columns from.
_COLUMNS_OF_NONE = {
    "validity": COLUMNS,
    "crossover": CROSSOVER_COLUMNS,
    **dict.fromkeys((PAIRS, *map(pairs_of, TABLES)), PAIR_COLUMNS),
}


def write_table(
    name: str, *, spec: Mapping[str, Any], inputs: Mapping[str, str | Sequence[str]], output: str, log: str
) -> None:
    """Assemble one table for the workflow; exits with a sentence where an artifact is damaged."""
    lists = {stage: [paths] if isinstance(paths, str) else list(paths) for stage, paths in inputs.items()}
    try:
        lifeline.attach(Path(output).parent / SCRATCH)
        await_inputs(chain.from_iterable(lists.values()), Path(output).parent)
        frame = assemble(name, spec, lists)
        write_csv(frame, Path(output))
        write_record(Path(output), record_of(spec, lists))
        Path(log).write_text(f"{frame.height} rows, {frame.width} columns\n")
    # Panics of libraries in Rust are no Exception.
    except BaseException as error:
        sentence = error if isinstance(error, UserError) else fault_of_machine(error, Path(output))
        if sentence is None:
            raise
        end_with(sentence, name, Path(log))


def assemble(name: str, spec: Mapping[str, Any], inputs: Mapping[str, list[str]]) -> pl.DataFrame:
    """The table as a frame."""
    rows = ASSEMBLERS[name](spec, inputs)
    schema = None if rows else dict.fromkeys(_COLUMNS_OF_NONE.get(name, ()), pl.String)
    return pl.DataFrame(rows, schema=schema, infer_schema_length=None)


def write_csv(frame: pl.DataFrame, path: Path) -> None:
    """Write `path` whole or not at all; empty cells are empty, text is quoted where it must be."""
    buffer = io.StringIO()
    frame.write_csv(buffer)
    write_text(path, buffer.getvalue())


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m effllm.assembly.assemble", description=__doc__)
    parser.add_argument("table", choices=sorted(ASSEMBLERS))
    parser.add_argument("--spec", type=Path, required=True)
    parser.add_argument("--input", action="append", default=[], metavar="STAGE=MANIFEST or tables=CSV")
    parser.add_argument("--output", required=True)
    arguments = parser.parse_args()
    inputs: dict[str, list[str]] = {}
    for text in arguments.input:
        stage, _, path = text.partition("=")
        inputs.setdefault(stage, []).append(path)
    spec = json.loads(arguments.spec.read_text())
    write_table(arguments.table, spec=spec, inputs=inputs, output=arguments.output, log="/dev/stdout")


if __name__ == "__main__":
    main()
