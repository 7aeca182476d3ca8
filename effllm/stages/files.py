"""The plain files that a study names by paths and glob patterns."""

import glob
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
        found = [path for path in glob.glob(_literal_where_it_exists(pattern), recursive=True) if Path(path).is_file()]
        if not found and _exists(pattern):
            raise UserError(f"{where}.source.{key}: {pattern!r} is a directory; name its files, as {pattern}/{such}.")
        if not found:
            raise UserError(f"{where}.source.{key}: {pattern!r} matches no file; correct the path or add the file.")
        files.update(found)
    return sorted(files)


def _literal_where_it_exists(pattern: str) -> str:
    """The pattern with the special characters of its leading parts escaped, as far as they name what exists."""
    parts = pattern.split("/")
    beginnings = ("/".join(parts[:end]) or "/" for end in range(1, len(parts) + 1))
    known = sum(1 for _ in takewhile(_exists, beginnings))
    return "/".join([*map(glob.escape, parts[:known]), *parts[known:]])


def _exists(path: str) -> bool:
    # Unlike Path.exists it says no to a name that no file system can hold.
    return bool(glob.glob(glob.escape(path)))
