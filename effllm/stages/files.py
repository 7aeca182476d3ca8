"""The plain files that a study names by paths and glob patterns."""

import glob
import os
import re
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

from effllm.errors import UserError


def expand_paths(where: str, patterns: list[str], key: str = "paths", such: str = "*.jsonl") -> list[str]:
    """Files behind paths and glob patterns, sorted, each once; `UserError` for a pattern that matches nothing.

    `key` is the source's that has them, `such` a pattern of files that belong there. What exists under its name is
    meant, brackets and all: `data[1].jsonl` is a pattern only where no such file is.
    """
    files: set[str] = set()
    for pattern in patterns:
        if loop := next(_loops(pattern), None):
            link, target = loop
            raise UserError(
                f"{where}.source.{key}: {pattern!r} goes round in a circle by {str(link)!r}, a link to {str(target)!r} "
                "above it: delete the link, or name the folders one by one."
            )
        found = [path for path in glob.glob(_literal_where_it_exists(pattern), recursive=True) if Path(path).is_file()]
        if not found and _exists(pattern):
            raise UserError(f"{where}.source.{key}: {pattern!r} is a directory; name its files, as {pattern}/{such}.")
        if not found:
            raise UserError(f"{where}.source.{key}: {pattern!r} matches no file; correct the path or add the file.")
        files.update(found)
    for name in files:
        # Of bytes that are no UTF-8 halves of surrogate pairs are left, which can be neither printed nor written.
        if re.search(r"[\ud800-\udfff]", name):
            raise UserError(f"{where}.source.{key}: the name {name!r} is not UTF-8; rename the file.")
        if set(name) & set("{}\n"):
            raise UserError(
                f"{where}.source.{key}: the name {name!r} holds a brace or a line break, which Snakemake takes for its "
                "own; rename the file or folder."
            )
    return sorted(files)


def _loops(pattern: str) -> Iterator[tuple[Path, Path]]:
    """Links to a folder above them, which `**` in a pattern would follow again and again, and where they lead."""
    parts = pattern.split("/")
    if "**" not in parts:
        return
    above = "/".join(parts[: parts.index("**")])
    for start in glob.glob(_literal_where_it_exists(above)) if above else ["/" if pattern.startswith("/") else "."]:
        yield from _loops_below(Path(start), frozenset())


def _loops_below(folder: Path, above: frozenset[Path]) -> Iterator[tuple[Path, Path]]:
    own = Path(os.path.realpath(folder))
    if own in above:
        yield folder, own
        return
    try:
        # Patterns go into no hidden folder.
        inner = sorted(path for path in folder.iterdir() if not path.name.startswith(".") and path.is_dir())
    except OSError:
        # What may not be looked into matches nothing.
        return
    for path in inner:
        yield from _loops_below(path, above | {own})


def _literal_where_it_exists(pattern: str) -> str:
    """The pattern with the special characters of its leading parts escaped, as far as they name what exists."""
    parts = pattern.split("/")
    beginnings = ("/".join(parts[:end]) or "/" for end in range(1, len(parts) + 1))
    known = sum(1 for _ in takewhile(_exists, beginnings))
    return "/".join([*map(glob.escape, parts[:known]), *parts[known:]])


def _exists(path: str) -> bool:
    # Unlike Path.exists it says no to a name that no file system can hold.
    return bool(glob.glob(glob.escape(path)))
