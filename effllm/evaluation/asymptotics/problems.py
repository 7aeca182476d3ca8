"""HARDMath (Fan et al. 2024, arXiv 2410.09988): its problems as rows, how they are asked, and their score.

The harness prompts and decodes greedily, without examples; `judge_item` takes the place of its metric.
"""

import json
from collections import Counter
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from effllm.errors import UserError
from effllm.evaluation.asymptotics.grading import QUESTION_TYPES, TOLERANCE, example, grade
from effllm.hub.address import Address
from effllm.study.math_tasks import HardMathBenchmark, WebFile

TASK = "hard_math"
METRIC = "within_10_percent"
_REGIMES_METRIC = f"regimes_{METRIC}"
_TEXTS = ("question", "question_type", "answer_type", "answer_val")
_POINTS = ("small_eval_point", "large_eval_point")
_NUMBERS = ("small_analytical", "small_numerical", "large_analytical", "large_numerical")
_IN_A_BOX = r"End your answer with \boxed{}, which holds "
_HINTS = {
    "integral": _IN_A_BOX + "one formula in $x$.",
    "integral by regime": _IN_A_BOX + "a list of formulas in $\\epsilon$: for small, large and very large $\\epsilon$.",
    "ODE": _IN_A_BOX + "a list of two formulas in $x$: for small and for large $x$.",
    "polynomial_roots": _IN_A_BOX
    + "two lists of formulas in $\\epsilon$: all roots for small, then all roots for large $\\epsilon$.",
    "nondimensionalization_numeric": _IN_A_BOX + "one number with two decimal places.",
    "nondimensionalization_symbolic": _IN_A_BOX + "one formula in $a_1$, $a_2$ and $a_3$.",
}


def problems(settings: HardMathBenchmark, files: list[Path], scratch: Path) -> tuple[list[dict], dict[str, Any]]:
    """The problems as rows, each with its `hint` and an answer of its own that is right, and where they come from.

    `UserError` for a file that cannot be fetched or read, and for a problem that cannot be graded.
    """
    source = settings.source
    if isinstance(source, WebFile):
        file = scratch / "problems.json"
        Address("benchmark.source", source.url, source.sha256).fetch(file)
        origin: dict[str, Any] = {"url": source.url, "sha256": source.sha256}
    else:
        (file,) = files
        origin = {"file": file.name}
    rows = [_checked(row, name) for name, row in islice(_named_rows(file), settings.limit)]
    if not rows:
        raise UserError("benchmark.source: there is no problem in it; name a file that holds some.")
    kinds = Counter(row["question_type"] for row in rows)
    grading = (
        f"this project's own: formulas are evaluated, and right within {TOLERANCE:.0%}; no model judges, as one "
        "does in HARDMath's own grading of most types of question"
    )
    return rows, {**origin, "grading": grading, "problems": dict(sorted(kinds.items()))}


def task_config(settings: HardMathBenchmark) -> dict[str, Any]:
    """The task as lm-eval reads it; `judge` names what scores it (`effllm.evaluation.tasks`)."""
    return {
        "judge": TASK,
        "output_type": "generate_until",
        "test_split": "test",
        "doc_to_text": "Question: {{question}}\n{{hint}}\nSolution:",
        "doc_to_target": "right_answer",
        "num_fewshot": 0,
        "generation_kwargs": {"until": ["\nQuestion:"], "do_sample": False, "max_gen_toks": settings.new_tokens},
        "metric_list": [
            {"metric": name, "higher_is_better": True, "aggregation": "mean"} for name in (METRIC, _REGIMES_METRIC)
        ],
        "metadata": {"version": 1},
    }


def judge_item(problem: dict[str, Any], answers: list[str]) -> dict[str, float]:
    """1 where every regime is right, and the share of regimes that are."""
    (text,) = answers
    regimes = grade(problem, text)
    return {METRIC: float(all(regimes)), _REGIMES_METRIC: sum(regimes) / len(regimes)}


def _named_rows(file: Path) -> list[tuple[str, Any]]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"benchmark.source: {file.name} is not JSON ({error}); fetch it again, or correct it."
        ) from None
    if isinstance(content, dict):
        return list(content.items())
    if isinstance(content, list):
        return [(str(number), row) for number, row in enumerate(content)]
    raise UserError(f"benchmark.source: {file.name} holds no problems; name a JSON object of problems, or a list.")


def _checked(row: Any, name: str) -> dict[str, Any]:
    where = f"benchmark.source: problem {name[:40]!r}"
    if not isinstance(row, Mapping):
        raise UserError(f"{where} is not an object; a problem has the keys of HARDMath's.")
    for key in _TEXTS:
        if not isinstance(row.get(key), str):
            raise UserError(f"{where}: {key} is not a text; correct it.")
    if row["question_type"] not in QUESTION_TYPES:
        raise UserError(
            f"{where}: the question_type {row['question_type'][:40]!r} is not known; use one of "
            f"{', '.join(QUESTION_TYPES)}."
        )
    try:
        plain = {key: row[key] for key in _TEXTS}
        plain |= {key: None if row.get(key) is None else float(row[key]) for key in _POINTS}
        plain |= {key: None if row.get(key) is None else str(row[key]) for key in _NUMBERS}
        plain["precision"] = None if row.get("precision") is None else int(row["precision"])
        right_answer = example(plain)
    # Whatever is wrong with a row, it cannot be graded.
    except (ValueError, TypeError, KeyError, SyntaxError, ArithmeticError) as error:
        raise UserError(f"{where} cannot be graded ({error}); correct it, or take it out.") from None
    by_regime = row["question_type"] == "integral" and row["answer_type"] == "list"
    hint = _HINTS["integral by regime" if by_regime else row["question_type"]]
    return {**plain, "problem": name, "hint": hint, "right_answer": right_answer}
