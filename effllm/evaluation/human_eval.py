"""HumanEval (Chen et al. 2021, arXiv 2107.03374): Python functions that a model completes, judged by running them.

The harness prompts and decodes; `judge_item` takes the place of its metric, which would run programs unprotected.
"""

import ast
import json
from collections.abc import Iterator, Mapping
from importlib.metadata import files as files_of
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

from effllm.data.sources.reading import json_lines, open_parquet
from effllm.errors import UserError
from effllm.evaluation.code.isolation import Limits
from effllm.evaluation.code.judge import outcomes, pass_at_k
from effllm.hub.dataset import HubDataset
from effllm.study.code_tasks import HubProblems, HumanEvalBenchmark, PackagedProblems

TASK = "human_eval"
COLUMNS = ("task_id", "prompt", "canonical_solution", "test", "entry_point")
# Where a completion of a function ends (the paper's stop sequences), and where a program in a fenced block does.
_STOPS = {"completion": ["\nclass", "\ndef", "\n#", "\nif", "\nprint"], "instruction": ["\n```"]}
_INSTRUCTION = (
    "Write a solution to the following problem and make sure that it passes the tests:\n```python\n{{prompt}}\n```\n"
)
_BEGINNING = "Here is the completed function:\n```python\n{{prompt}}\n"


def problems(settings: HumanEvalBenchmark, files: list[Path], scratch: Path) -> tuple[list[dict], dict[str, Any]]:
    """The problems as rows of `COLUMNS` and `judging`, the settings of their judge, and where they come from.

    `UserError` for problems that cannot be fetched or read, lack a column, or name a function that is no name.
    """
    source = settings.source
    if isinstance(source, HubProblems):
        dataset = HubDataset(source.repo, None, source.revision, scratch)
        found: Iterator[dict[str, Any]] = (row for batch in dataset.batches(source.split) for row in batch.to_pylist())
        origin: dict[str, Any] = {"dataset": source.repo, "revision": source.revision}
    elif isinstance(source, PackagedProblems):
        (packaged,) = (file for file in files_of("human-eval") or [] if file.name == "HumanEval.jsonl.gz")
        found = _rows(Path(packaged.locate()))
        origin = {"package": "human-eval", "version": version("human-eval")}
    else:
        found = (row for file in files for row in _rows(file))
        origin = {"files": [file.name for file in files]}
    rows = [_checked(row, number) for number, row in enumerate(islice(found, settings.limit), 1)]
    if not rows:
        raise UserError("benchmark.source: there is no problem in it; name files that hold some.")
    judging = json.dumps(
        {
            "isolation": settings.isolation,
            "k": settings.k,
            "seconds": settings.seconds,
            "memory_bytes": settings.memory_MB * 2**20,
            "form": settings.form,
        }
    )
    return [{**row, "judging": judging} for row in rows], origin


def task_config(settings: HumanEvalBenchmark) -> dict[str, Any]:
    """The task as lm-eval reads it; `judge` names what scores it (`effllm.evaluation.tasks`)."""
    sampled = {"do_sample": True, "temperature": settings.temperature, "top_p": settings.top_p}
    is_instruction = settings.form == "instruction"
    return {
        "judge": TASK,
        "output_type": "generate_until",
        "test_split": "test",
        "doc_to_text": _INSTRUCTION if is_instruction else "prompt",
        **({"gen_prefix": _BEGINNING} if is_instruction else {}),
        "doc_to_target": "canonical_solution",
        "num_fewshot": 0,
        "repeats": settings.samples,
        "generation_kwargs": {
            "until": _STOPS[settings.form],
            "max_gen_toks": settings.new_tokens,
            **(sampled if settings.temperature else {"do_sample": False}),
        },
        "filter_list": [{"name": "all", "filter": [{"function": "take_first_k", "k": settings.samples}]}],
        "metric_list": [{"metric": metric(settings), "higher_is_better": True, "aggregation": "mean"}],
        "metadata": {"version": 1, "isolation": settings.isolation},
    }


def metric(settings: HumanEvalBenchmark) -> str:
    """The name of the score."""
    return f"pass@{settings.k}"


def judge_item(problem: dict[str, Any], answers: list[list[str]]) -> dict[str, float]:
    """pass@k of one problem, a row of `problems`, from what the model wrote after its prompt."""
    settings = json.loads(problem["judging"])
    (continuations,) = answers
    limits = Limits(seconds=settings["seconds"], memory_bytes=settings["memory_bytes"])
    programs = [problem["prompt"] + _continuation(text) for text in continuations]
    found = outcomes(
        programs, problem["prompt"], problem["test"], problem["entry_point"], settings["isolation"], limits
    )
    return {f"pass@{settings['k']}": pass_at_k(len(found), found.count("passed"), settings["k"])}


def _continuation(text: str) -> str:
    """What of an answer belongs to the program: all before a fence that ends it."""
    return text.partition("\n```")[0]


def _checked(row: Mapping[str, Any], number: int) -> dict[str, str]:
    missing = [column for column in COLUMNS if not isinstance(row.get(column), str)]
    where = f"benchmark.source: problem {number}"
    if missing:
        raise UserError(
            f"{where}: {missing[0]} is not a text; a problem has the columns {', '.join(COLUMNS)}, all texts."
        )
    if not row["entry_point"].isidentifier():
        raise UserError(f"{where}: entry_point {row['entry_point'][:40]!r} is not the name of a function; correct it.")
    try:
        ast.parse(row["prompt"] + row["canonical_solution"])
        ast.parse(row["test"])
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"{where}: its solution or its tests are not Python ({error}); correct them.") from None
    return {column: row[column] for column in COLUMNS}


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    if file.suffix == ".parquet":
        with open_parquet(file) as table:
            for batch in table.iter_batches():
                yield from batch.to_pylist()
    else:
        yield from (row for _, row in json_lines(file))
