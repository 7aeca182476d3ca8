"""A benchmark artifact as the task files that lm-eval reads, and these as tasks.

Registered tasks are included by their path and only their dataset is replaced: an override given to lm-eval as a
dict does not merge with the registered task, and a copy would lose the functions beside its file.
"""

import contextlib
import random
import sys
from pathlib import Path
from typing import Any

import yaml

from effllm.errors import UserError
from effllm.results.benchmark import Benchmark
from effllm.study.harness_index import tasks_folder


class _Function(str):
    """The path of a function, which lm-eval imports."""


JUDGES = {
    "human_eval": _Function("effllm.evaluation.human_eval.judge_item"),
    "hard_math": _Function("effllm.evaluation.asymptotics.problems.judge_item"),
}
"""What scores the answers of tasks whose metrics lm-eval does not have, by the name in their `judge`."""


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        """Write an object that is used twice out twice: lm-eval does not know anchors."""
        return True


_Dumper.add_representer(_Function, lambda dumper, path: dumper.represent_scalar("!function", str(path)))


def write_task_files(benchmark: Benchmark, payload: Path, folder: Path) -> None:
    """Write a YAML file per task and group of `benchmark` into `folder`.

    `payload` is the artifact's directory. The rows are read from it, and what `datasets` makes of them stays below
    `folder`, so that neither an earlier run nor another process is read from. `UserError` if the installed lm-eval
    no longer has a registered file.
    """
    for task in benchmark.tasks:
        files = {split: str((payload / file).resolve()) for split, file in task.data_files.items()}
        config = dict(task.config)
        judge = config.pop("judge", None)
        definition = {
            **_base(task.include, benchmark),
            **config,
            **({"process_results": JUDGES[judge]} if judge else {}),
            "task": task.name,
            "dataset_path": "parquet",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": files, "cache_dir": str((folder / "cache").resolve())},
        }
        _write(folder / f"{task.name}.yaml", definition)
    for name, file in benchmark.groups.items():
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
    if "sympy.parsing.latex" in sys.modules:
        # MATH's checkers give sympy a second to compare two answers. Its parser is imported by its first use; cut off
        # there, it fails for the rest of the process and every later answer counts as wrong. What it lacks, they say.
        with contextlib.suppress(ImportError):
            sys.modules["sympy.parsing.latex"].parse_latex("1")
    return loaded


def _base(include: str | None, benchmark: Benchmark) -> dict[str, Any]:
    if include is None:
        return {}
    path = tasks_folder() / include
    if not path.is_file():
        raise UserError(
            f"{path} is missing: the benchmark was made with lm-eval {benchmark.source.get('lm_eval')}; install "
            "that version, or delete the benchmark's artifact and run again."
        )
    return {"include": str(path.resolve())}


def _write(path: Path, definition: dict[str, Any]) -> None:
    path.write_text(yaml.dump(definition, Dumper=_Dumper, sort_keys=False, allow_unicode=True))
