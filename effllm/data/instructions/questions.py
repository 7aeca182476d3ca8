"""Questions about Python's standard library and their answers, made of its docstrings and signatures.

They differ a little between Python versions, as the library does; the artifact's manifest holds the digests of what
was found.
"""

import ast
import inspect
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from effllm.data.standard_library import definitions, public_modules

_LONGEST_SUMMARY = 300


@dataclass(frozen=True)
class _Entry:
    """A documented function, method or class: `scope` is what holds it, `summary` its docstring's first paragraph."""

    kind: str
    scope: str
    name: str
    signature: str
    summary: str


def describe() -> Iterator[tuple[str, str]]:
    """What a function, method or class does, and its summary."""
    for entry in _entries():
        yield f"What does the {entry.kind} `{entry.scope}.{entry.name}` do?", entry.summary


def name() -> Iterator[tuple[str, str]]:
    """Which function, method or class fits a summary, and its name with its signature.

    A summary that fits several in one place has no one answer and is left out.
    """
    entries = list(_entries())
    fitting = Counter((entry.kind, entry.scope, entry.summary) for entry in entries)
    for entry in entries:
        if fitting[entry.kind, entry.scope, entry.summary] == 1:
            question = f"Which {entry.kind} of `{entry.scope}` is described by this summary?\n{entry.summary}"
            yield question, f"`{entry.signature}`"


QUESTIONS: dict[str, Callable[[], Iterator[tuple[str, str]]]] = {"describe": describe, "name": name}


def _entries() -> Iterator[_Entry]:
    for module, _, tree in public_modules():
        seen: set[str] = set()
        for entry in _documented(tree, module):
            # Defined again (another platform, another branch): the first one counts.
            qualified = f"{entry.scope}.{entry.name}"
            if qualified not in seen:
                seen.add(qualified)
                yield entry


def _documented(node: ast.Module | ast.ClassDef, scope: str) -> Iterator[_Entry]:
    for child in definitions(node):
        summary = _summary(child)
        if summary is not None:
            kind = (
                "class"
                if isinstance(child, ast.ClassDef)
                else "method"
                if isinstance(node, ast.ClassDef)
                else "function"
            )
            yield _Entry(kind, scope, child.name, _signature(child, kind), summary)
        if isinstance(child, ast.ClassDef):
            yield from _documented(child, f"{scope}.{child.name}")


def _summary(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> str | None:
    """The first paragraph of the docstring on one line; None if it is no sentence: one word, code, very long."""
    paragraph = inspect.cleandoc(ast.get_docstring(node, clean=False) or "").split("\n\n", 1)[0]
    text = " ".join(paragraph.split())
    is_sentence = " " in text and ">>>" not in text and len(text) <= _LONGEST_SUMMARY
    return text if is_sentence else None


def _signature(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, kind: str) -> str:
    """Name and parameters as a caller writes them: a class has its constructor's, a method no `self`."""
    function: ast.stmt | None = node
    if isinstance(node, ast.ClassDef):
        function = next((child for child in node.body if getattr(child, "name", None) == "__init__"), None)
    if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
        return f"{node.name}()"
    parameters = ast.unparse(function.args)
    if kind != "function":
        first, _, rest = parameters.partition(",")
        parameters = rest.lstrip(" /,") if first in ("self", "cls") else parameters
    return f"{node.name}({parameters})"
