"""The public part of Python's standard library, read as source: parsed, never imported."""

import ast
import os
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

Definition = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
_NOT_PUBLIC = {"idlelib", "test", "tests", "site-packages", "dist-packages"}


def public_modules() -> Iterator[tuple[str, str, ast.Module]]:
    """Name, file (relative to the library) and syntax tree of each module without an underscore in its path, sorted."""
    root = Path(sysconfig.get_path("stdlib"))
    for module, path in sorted(_module_files(root)):
        # Bytes, because ast then obeys the file's own coding line.
        yield module, path.relative_to(root).as_posix(), ast.parse(path.read_bytes(), filename=str(path))


def definitions(node: ast.AST) -> Iterator[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """Public definitions in the body of `node`, those under `if` and `try` included, in file order."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if not child.name.startswith("_"):
                yield child
        elif isinstance(child, ast.stmt | ast.ExceptHandler):
            yield from definitions(child)


def _module_files(root: Path) -> Iterator[tuple[str, Path]]:
    for directory, subdirectories, files in os.walk(root):
        # Pruned here, because site-packages may hold a hundred thousand files.
        subdirectories[:] = [name for name in subdirectories if _is_public(name)]
        package = Path(directory).relative_to(root).parts
        for file in files:
            stem, _, ending = file.rpartition(".")
            parts = package if stem == "__init__" else (*package, stem)
            if ending == "py" and parts and parts[0] in sys.stdlib_module_names and all(map(_is_public, parts)):
                yield ".".join(parts), Path(directory, file)


def _is_public(name: str) -> bool:
    return not name.startswith("_") and name not in _NOT_PUBLIC
