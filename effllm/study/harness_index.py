"""Whether lm-evaluation-harness knows a task, without importing it: the check of a configuration must be quick.

The harness takes seconds to import and index its 14,000 task files. A task stands in a folder named after the
first part of its name nearly always, so that folder is read first and the rest only if it is not there.
"""

import difflib
import importlib.util
import os
import re
from collections.abc import Iterator
from pathlib import Path

from effllm.errors import UserError

_KEYED_NAME = re.compile(
    rb"^[\"']?(?:task|group)[\"']?[ \t]*:[ \t]*[\"']?([^\s\"'#]+)[\"']?[ \t]*(?:#.*)?\r?$", re.MULTILINE
)


def tasks_folder() -> Path:
    """The folder of lm-eval's registered task files; `UserError` if lm-eval is not installed."""
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("lm_eval is not installed: install this package's requirements (lm-eval).")
    return Path(spec.submodule_search_locations[0]) / "tasks"


def harness_task_exists(name: str) -> bool:
    """Whether `name` is a task or group that lm-eval registers.

    A tag is neither: it names tasks without a rule for one score over them.
    """
    near, far = _folders(name)
    return any(name in _names(folder) for folder in (*near, *far))


def harness_suggestions(name: str, count: int = 3) -> list[str]:
    """Up to `count` registered names near an unknown one: of the folder of its first part if there is one."""
    near, far = _folders(name)
    known = {known for folder in near or far for known in _names(folder)}
    return difflib.get_close_matches(name, sorted(known), n=count)


def near_folders(name: str) -> list[Path]:
    """Task folders that begin with the first part of `name`, the closest first."""
    return _folders(name)[0]


def _folders(name: str) -> tuple[list[Path], list[Path]]:
    """`near_folders`, and all the other ones."""
    first = re.split(r"[_\W]", name, maxsplit=1)[0].lower()
    near: list[Path] = []
    far: list[Path] = []
    for folder in sorted(path for path in tasks_folder().iterdir() if path.is_dir()):
        (near if first and folder.name.lower().startswith(first) else far).append(folder)
    return sorted(near, key=lambda folder: (len(folder.name), folder.name)), far


def _names(folder: Path) -> Iterator[str]:
    for directory, _, files in os.walk(folder):
        for file in files:
            if file.endswith(".yaml"):
                text = Path(directory, file).read_bytes()
                yield from (name.decode() for name in _KEYED_NAME.findall(text))
