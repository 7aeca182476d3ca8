"""What counts as a right answer to a problem of HARDMath: values, compared at given points.

HARDMath itself has a language model judge most answers. Here none does: every formula of an answer is evaluated, and
its value has to be within `TOLERANCE` of what the problem's row gives, regime by regime. Rules by type of question:

integral            one formula in x: at the row's large point, against its numerical value. Formulas by regime in
                    epsilon: each against the row's own formula of that regime, at `POWER_POINTS`.
ODE                 two formulas in x. Small: the departure from the value at 0, against that of the row's own formula,
                    since every formula that begins with the initial value is within 10 % of it. Large: at the row's
                    large point, against its numerical value.
polynomial_roots    two lists in epsilon, at the row's small and large point: a root for each of the row's numerical
                    ones, each at most `TOLERANCE` of its modulus away.
nondimensionalization_numeric   a number, within `TOLERANCE` or half a unit of the last digit that the row keeps.
nondimensionalization_symbolic  a formula in the coefficients, equal to the row's (to `EXACT`) at `COEFFICIENTS`.

Where the row's own formula is further from the numerical value than that, being within `TOLERANCE` of the formula's
value is right as well.
"""

import ast
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from effllm.evaluation.asymptotics.answer import boxes, formula, literal_list, split, with_both_signs
from effllm.evaluation.asymptotics.formula import LONGEST, NoFormulaError, value

TOLERANCE = 0.1
EXACT = 1e-6
POWER_POINTS = (1e-3, 1e3)
COEFFICIENTS = ({"a_1": 0.7, "a_2": 1.9, "a_3": 1.3}, {"a_1": 2.3, "a_2": 0.6, "a_3": 3.1})
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_COMPLEX = re.compile(rf"({_NUMBER})\s*([-+](?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)j")

Regimes = list[bool]


def grade(row: Mapping[str, Any], text: str) -> Regimes:
    """Which regimes of the problem `row` the model's `text` answers right; [False] where there is no answer."""
    found = boxes(text)
    if not found or max(map(len, found[-2:])) > 2 * LONGEST:
        return [False]
    return _RULES[row["question_type"]](row, found)


def example(row: Mapping[str, Any]) -> str:
    """The row's own answer in the form that the prompt asks for, which `grade` finds right.

    `ValueError` for a row that cannot be graded: its formulas cannot be read, or do not fit its numbers.
    """
    kind = row["question_type"]
    if kind == "polynomial_roots":
        lists = (_complex_list(row[f"{regime}_analytical"]) for regime in ("small", "large"))
        text = ", ".join(f"[{', '.join(f'{z.real!r} + {z.imag!r} i' for z in roots)}]" for roots in lists)
    elif kind == "ODE":
        text = f"[{', '.join(part.strip() for part in literal_list(row['answer_val']))}]"
    else:
        text = (boxes(row["answer_val"]) or [row["answer_val"]])[-1]
    text = f"\\boxed{{{text}}}"
    if not all(grade(row, text)):
        raise ValueError("its own answer does not fit its numbers, or cannot be read")
    return text


def _integral(row: Mapping[str, Any], found: Sequence[str]) -> Regimes:
    if row["answer_type"] == "list":
        own, given = split(row["answer_val"]), split(found[-1])
        return _each(own, given, lambda a, b: all(_near_formulas(a, b, {"epsilon": point}) for point in POWER_POINTS))
    at = {"x": row["large_eval_point"]}
    (own_text,) = boxes(row["answer_val"]) or [row["answer_val"]]
    return [_near_value(found[-1], at, _number(row["large_numerical"]), own_text)]


def _ode(row: Mapping[str, Any], found: Sequence[str]) -> Regimes:
    def small(own: str, given: str) -> bool:
        begins, there = {"x": 0.0}, {"x": row["small_eval_point"]}
        departed = [_value(text, there) - _value(text, begins) for text in (own, given)]
        return _near(_value(given, begins), _value(own, begins)) and _near(departed[1], departed[0])

    def large(own: str, given: str) -> bool:
        return _near_value(given, {"x": row["large_eval_point"]}, _number(row["large_numerical"]), own)

    return _each(literal_list(row["answer_val"]), split(found[-1]), small, large)


def _roots(row: Mapping[str, Any], found: Sequence[str]) -> Regimes:
    given = split(found[-1])
    if len(given) != 2 or not all(part.lstrip("\\left ").startswith(("[", "(")) for part in given):
        # Each list in a box of its own.
        given = list(found[-2:])
    if len(given) != 2:
        return [False, False]
    return [_has_roots(row, regime, text) for regime, text in zip(("small", "large"), given, strict=True)]


def _has_roots(row: Mapping[str, Any], regime: str, text: str) -> bool:
    at = {"epsilon": row[f"{regime}_eval_point"]}
    try:
        roots = [value(formula(part), at, real_roots=False) for part in with_both_signs(split(text))]
    except NoFormulaError:
        return False
    targets = _complex_array(row[f"{regime}_numerical"]), _complex_list(row[f"{regime}_analytical"])
    return any(_matches(roots, wanted) for wanted in targets)


def _numeric(row: Mapping[str, Any], found: Sequence[str]) -> Regimes:
    wanted = float(row["answer_val"])
    rounding = 0.5 * 10.0 ** -(row["precision"] or 0)
    given = _try(lambda: value(formula(found[-1]), {}))
    return [given is not None and abs(given - wanted) <= max(TOLERANCE * abs(wanted), rounding * 1.000001)]


def _symbolic(row: Mapping[str, Any], found: Sequence[str]) -> Regimes:
    own, given = row["answer_val"], found[-1]
    return [bool(_try(lambda: all(_near(_value(given, at), _value(own, at), EXACT) for at in COEFFICIENTS)))]


_RULES: dict[str, Callable[[Mapping[str, Any], Sequence[str]], Regimes]] = {
    "integral": _integral,
    "ODE": _ode,
    "polynomial_roots": _roots,
    "nondimensionalization_numeric": _numeric,
    "nondimensionalization_symbolic": _symbolic,
}
QUESTION_TYPES = tuple(_RULES)


def _each(own: Sequence[str], given: Sequence[str], *fits: Callable[[str, str], bool]) -> Regimes:
    """Whether each part of an answer fits the row's; `fits` by part, or one for all."""
    if len(own) != len(given):
        return [False] * len(own)
    rules = fits * len(own) if len(fits) == 1 else fits
    return [bool(_try(partial(rule, a, b))) for rule, a, b in zip(rules, own, given, strict=True)]


def _near_value(given: str, at: Mapping[str, float], numerical: float, own: str) -> bool:
    """Whether a formula's value is near the numerical one, or near that of the row's own formula."""
    found = _try(lambda: _value(given, at))
    return found is not None and (_near(found, numerical) or _near(found, _value(own, at)))


def _near_formulas(own: str, given: str, at: Mapping[str, float]) -> bool:
    return _near(_value(given, at), _value(own, at))


def _near(found: complex, wanted: complex, tolerance: float = TOLERANCE) -> bool:
    return abs(found - wanted) <= tolerance * abs(wanted)


def _value(text: str, at: Mapping[str, float]) -> complex:
    return value(formula(text), at)


def _try(compute: Callable[[], Any]) -> Any:
    """What `compute` returns; None where a formula cannot be read."""
    try:
        return compute()
    except NoFormulaError:
        return None


def _matches(roots: Sequence[complex], wanted: Sequence[complex]) -> bool:
    """Whether the roots can be paired with the wanted ones, one with one, each pair near."""
    if len(roots) != len(wanted):
        return False
    is_far = np.array([[not _near(root, other) for other in wanted] for root in roots])
    return not is_far[linear_sum_assignment(is_far)].any()


def _number(text: Any) -> float:
    """The number at the head of a field, which HARDMath keeps as text."""
    return float(str(text).strip())


def _complex_list(text: str) -> list[complex]:
    """A Python list of complex numbers, as SymPy's roots were written."""
    numbers = ast.literal_eval(text)
    if not isinstance(numbers, list):
        raise ValueError("no list of numbers")
    return [complex(number) for number in numbers]


def _complex_array(text: str) -> list[complex]:
    """Numbers as numpy prints an array of them."""
    inside = text.strip().strip("[]")
    if "j" in inside:
        return [complex(float(real), float(imag)) for real, imag in _COMPLEX.findall(inside)]
    return [complex(float(number)) for number in inside.split()]
