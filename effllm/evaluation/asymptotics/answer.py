r"""What of a model's text is its answer: the formulas in its last \boxed{}."""

import ast
import re

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_BRACE = re.compile(r"(?<!\\)[{}]")
_RELATION = re.compile(r"=|\\approx|\\sim(?:eq)?(?![a-zA-Z])|\\simeq|\\to(?![a-zA-Z])|\u2248|\u223c")
_WORDS = re.compile(r"\\(?:text|mathrm|textrm|mbox)\s*\{([^{}]*)\}")
_REST = re.compile(r"\+\s*(?:\\mathcal\s*\{\s*O\s*\}|\\mathcal\s+O|O|o)\s*(?:\\left\s*)?[({].*$", re.DOTALL)
_MOST_BRACKETS = 5
_SIZES = re.compile(r"\\(?:left|right|bigl?|bigr?|Bigl?|Bigr?)(?![a-zA-Z])")


def boxes(text: str) -> list[str]:
    r"""What stands in the text's \boxed{}, in order; one within another is not listed again."""
    begins = {match.end() - 1 for match in _BOX.finditer(text)}
    open_braces: list[int] = []
    closed: list[tuple[int, int]] = []
    for match in _BRACE.finditer(text):
        if match[0] == "{":
            open_braces.append(match.start())
        elif open_braces and (begin := open_braces.pop()) in begins:
            _before(closed, begin).append((begin, match.start()))
    return [text[begin + 1 : end] for begin, end in closed]


def _before(spans: list[tuple[int, int]], begin: int) -> list[tuple[int, int]]:
    """Without those that lie within what begins at `begin`: they are the last ones."""
    while spans and spans[-1][0] > begin:
        spans.pop()
    return spans


def split(text: str) -> list[str]:
    """The parts of a list: what stands between commas and semicolons outside of all brackets, brackets taken off."""
    text = _unwrapped(text)
    parts, depth, start = [], 0, 0
    for at, letter in enumerate(text):
        depth += {"[": 1, "(": 1, "{": 1, "]": -1, ")": -1, "}": -1}.get(letter, 0)
        # A comma behind a backslash is a space.
        if letter in ",;" and depth == 0 and (at == 0 or text[at - 1] != "\\"):
            parts.append(text[start:at])
            start = at + 1
    return [part.strip() for part in [*parts, text[start:]] if part.strip(" \n\\")]


def formula(text: str) -> str:
    """The right side of an equation, without an order of magnitude (+ O(x)) and without words."""
    for words in _WORDS.finditer(text):
        # One word in letters may be the name of a function.
        if not words[1].strip().isalpha():
            text = text[: words.start()]
            break
    text = _REST.sub("", text)
    return _RELATION.split(text)[-1].strip().rstrip(".,").strip("'\"")


def with_both_signs(formulas: list[str]) -> list[str]:
    r"""The formulas, those with \pm twice: with the upper and with the lower signs."""
    found = []
    for text in formulas:
        upper, lower = (
            text.replace("\\pm", first).replace("±", first).replace("\\mp", second).replace("∓", second)
            for first, second in ((" + ", " - "), (" - ", " + "))
        )
        found += [upper] if upper == lower else [upper, lower]
    return found


def literal_list(text: str) -> list[str]:
    """A Python list of texts as HARDMath writes it; `ValueError` for anything else."""
    try:
        parts = ast.literal_eval(text)
    except (SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError(str(error)) from None
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        raise ValueError("no list of texts")
    return parts


def _unwrapped(text: str) -> str:
    text = _SIZES.sub("", text).replace("\\{", "(").replace("\\}", ")").replace("\\[", "[").replace("\\]", "]").strip()
    text = text.strip("$ \n")
    # "x = [...]": the list is what is asked for.
    head, sign, tail = text.partition("[")
    if sign and _RELATION.search(head) and not re.search(r"[\[,]", head) and tail.endswith("]"):
        text = f"[{tail}"
    for _ in range(_MOST_BRACKETS):
        if text[:1] in ("[", "(") and _closes(text) == len(text) - 1:
            text = text[1:-1].strip()
    return text


def _closes(text: str) -> int:
    """Where the bracket that `text` begins with is closed; -1 if nowhere."""
    depth = 0
    for at, letter in enumerate(text):
        depth += {"[": 1, "(": 1, "{": 1, "]": -1, ")": -1, "}": -1}.get(letter, 0)
        if not depth:
            return at
    return -1
