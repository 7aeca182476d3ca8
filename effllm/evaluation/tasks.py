"""A benchmark artifact as the task files that lm-eval reads, and these as tasks.

Registered tasks are included by their path and only their dataset is replaced: an override given to lm-eval as a
dict does not merge with the registered task, and a copy would lose the functions beside its file.
"""

import json
import random
import sys
from pathlib import Path
from typing import Any

import yaml

from effllm.errors import UserError
from effllm.study.harness_index import tasks_folder


def write_task_files(benchmark: dict[str, Any], payload: Path, folder: Path) -> None:
    """Write a YAML file per task and group of `benchmark` (the content of benchmark.json) into `folder`.

    `payload` is the artifact's directory. The rows are read from it, and what `datasets` makes of them stays below
    `folder`, so that neither an earlier run nor another process is read from. `UserError` if the installed lm-eval
    no longer has a registered file.
    """
    for task in benchmark["tasks"]:
        files = {split: str((payload / file).resolve()) for split, file in task["data_files"].items()}
        definition = {
            **_base(task["include"], benchmark),
            **task["config"],
            "task": task["name"],
            "dataset_path": "parquet",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": files, "cache_dir": str((folder / "cache").resolve())},
        }
        _write(folder / f"{task['name']}.yaml", definition)
    for name, file in benchmark["groups"].items():
        _write(folder / f"{name}.group.yaml", {**_base(file, benchmark), "group": name})


def load_tasks(folder: Path, name: str, seed: int) -> dict[str, Any]:
    """lm-eval's tasks behind the task files in `folder`, seeded as its `simple_evaluate` does.

    `simple_evaluate` itself is not used: at its end it collects a description of the machine for 3 s, which the
    provenance of the artifact holds already.
    """
    import numpy
    import torch
    from lm_eval.tasks import TaskManager

    # GPQA shuffles the choices of every item while it loads, by the global generator.
    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)
    loaded = TaskManager(include_path=str(folder), include_defaults=False).load([name])
    for task in loaded["tasks"].values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=seed)
    if "langdetect" in sys.modules:
        # IFEval asks it for the language of answers, which it otherwise guesses by chance of its own.
        sys.modules["langdetect"].DetectorFactory.seed = seed
    return loaded


def _base(include: str | None, benchmark: dict[str, Any]) -> dict[str, Any]:
    if include is None:
        return {}
    path = tasks_folder() / include
    if not path.is_file():
        raise UserError(
            f"{path} is missing: the benchmark was made with lm-eval {benchmark['source'].get('lm_eval')}; install "
            "that version, or delete the benchmark's artifact and run again."
        )
    return {"include": str(path.resolve())}


def _write(path: Path, definition: dict[str, Any]) -> None:
    # By way of JSON, since YAML would write an object that is used twice as an anchor and an alias.
    path.write_text(yaml.safe_dump(json.loads(json.dumps(definition)), sort_keys=False, allow_unicode=True))
