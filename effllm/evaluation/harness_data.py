"""Harness tasks made self-contained: which registered files define them, and the rows of their datasets.

lm-eval loads data when it builds a task, by the newest revision. Here the task is resolved without loading, and
its dataset is fetched once, at the pinned commit, so that evaluations run offline on the same rows.
"""

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from effllm.errors import UserError
from effllm.hub.dataset import HubDataset
from effllm.study.harness_index import harness_suggestions, harness_task_exists, near_folders, tasks_folder

log = logging.getLogger(__name__)
PERPLEXITIES = ("word_perplexity", "byte_perplexity", "bits_per_byte", "perplexity")
_SPLIT_KEYS = ("training_split", "validation_split", "test_split", "fewshot_split")


@dataclass(frozen=True)
class Leaf:
    """One registered task that is no group: its file relative to lm-eval's task folder, and its settings."""

    name: str
    file: str
    config: dict[str, Any]

    def splits(self) -> list[str]:
        """Names of the splits that the harness reads for this task."""
        named = [self.config.get(key) for key in _SPLIT_KEYS]
        named.append((self.config.get("fewshot_config") or {}).get("split"))
        return sorted({split for split in named if split})

    def evaluated_split(self) -> str:
        """The split whose rows are the items."""
        return self.config.get("test_split") or self.config["validation_split"]

    def metrics(self) -> dict[str, bool | None]:
        """Metrics by name, and whether higher is better where the task says so; empty if it names none."""
        listed = self.config.get("metric_list") or []
        return {str(entry["metric"]): entry.get("higher_is_better") for entry in listed}


@dataclass(frozen=True)
class Resolved:
    """A task or group: its groups as (name, file) and its leaves, in the harness's order."""

    name: str
    groups: list[tuple[str, str]]
    leaves: list[Leaf]
    aggregated: list[str] | None

    def dataset_path(self) -> str:
        """The one dataset of all leaves; `UserError` if they have several, since one revision pins one."""
        paths = sorted({leaf.config["dataset_path"] for leaf in self.leaves})
        if len(paths) > 1:
            raise UserError(
                f"benchmark.task: {self.name!r} reads several datasets ({', '.join(paths)}) and one revision pins "
                "one; define a benchmark for each of its tasks."
            )
        return paths[0]

    def higher_is_better(self, metric: str) -> bool:
        """Direction of `metric` (or `metric,filter`); `UserError` if a leaf or the group does not give it."""
        metric = metric.partition(",")[0]
        if self.aggregated is not None and metric not in self.aggregated:
            known = ", ".join(self.aggregated) or "none; name one of its tasks instead"
            raise UserError(f"benchmark.metric: the group {self.name!r} does not aggregate {metric!r}; it has {known}.")
        for leaf in self.leaves:
            metrics = leaf.metrics()
            if metrics and metric not in metrics:
                raise UserError(
                    f"benchmark.metric: the task {leaf.name!r} does not compute {metric!r}; choose one of "
                    f"{', '.join(metrics)}."
                )
        stated = self.leaves[0].metrics().get(metric)
        if stated is not None:
            return stated
        from lm_eval.api.registry import is_higher_better

        return bool(is_higher_better(metric))


def resolve(name: str) -> Resolved:
    """Resolve a registered task or group to its leaves, loading no data.

    `UserError` if it does not exist, or if it cannot be made self-contained: tasks written in Python, with data of
    their own making, or that run generated code.
    """
    if not harness_task_exists(name):
        near = ", ".join(repr(word) for word in harness_suggestions(name))
        advice = f"did you mean {near}?" if near else "`lm-eval ls tasks` lists them all."
        raise UserError(f"benchmark.task: lm-eval has no task or group {name!r}; {advice}")
    from lm_eval.tasks import TaskManager

    # Indexing one folder takes milliseconds and all of them seconds; a group may reach into another folder.
    managers = (
        lambda: TaskManager(include_path=[str(path) for path in near_folders(name)], include_defaults=False),
        TaskManager,
    )
    for manager in managers:
        found = _walk(name, manager())
        if found:
            return found
    raise UserError(f"benchmark.task: {name!r} names tasks that lm-eval does not register; name its tasks one by one.")


def _walk(name: str, manager: Any) -> Resolved | None:
    """The task below `name` in this manager's index; None if a part of it is not there."""
    index, groups, leaves = manager.task_index, [], {}
    pending = [name]
    while pending:
        current = pending.pop(0)
        if current not in index:
            return None
        entry = index[current]
        if current in manager.all_groups:
            groups.append((current, _relative(entry.yaml_path)))
            pending = [_member(current, member) for member in entry.cfg.get("task") or []] + pending
        elif current in manager.all_tags:
            pending = sorted(entry.tags) + pending
        else:
            leaves[current] = _leaf(current, entry)
    aggregated = None
    if name in manager.all_groups:
        listed = index[name].cfg.get("aggregate_metric_list") or []
        aggregated = [entry["metric"] for entry in ([listed] if isinstance(listed, dict) else listed)]
    return Resolved(name, groups, list(leaves.values()), aggregated)


def _member(group: str, member: str | dict[str, Any]) -> str:
    if isinstance(member, str):
        return member
    named = member.get("group") or member.get("task")
    if not isinstance(named, str) or any(key.startswith("dataset") for key in member):
        raise UserError(f"benchmark.task: the group {group!r} defines tasks inline; name a task or another group.")
    return named


def _leaf(name: str, entry: Any) -> Leaf:
    config = entry.cfg or {}
    obstacle = None
    if entry.yaml_path is None or "class" in config:
        obstacle = "is written in Python"
    elif config.get("custom_dataset") or not config.get("dataset_path"):
        obstacle = "makes its data itself"
    elif config.get("unsafe_code"):
        obstacle = "runs generated code"
    elif not (config.get("test_split") or config.get("validation_split")):
        obstacle = "has neither a test nor a validation split"
    if obstacle:
        raise UserError(f"benchmark.task: {name!r} {obstacle}, which this benchmark does not support; name another.")
    leaf = Leaf(name, _relative(entry.yaml_path), config)
    unusual = [split for split in leaf.splits() if not re.fullmatch(r"\w+", split)]
    if unusual:
        raise UserError(f"benchmark.task: {name!r} reads {unusual[0]!r}, a slice of a split; name another task.")
    return leaf


def _relative(path: Path) -> str:
    return Path(path).resolve().relative_to(tasks_folder().resolve()).as_posix()


def dataset_of(leaf: Leaf, revision: str, scratch: Path) -> HubDataset:
    """The dataset of a leaf at `revision`; downloads go to `scratch`."""
    path, name = leaf.config["dataset_path"], leaf.config.get("dataset_name")
    options = {k: v for k, v in (leaf.config.get("dataset_kwargs") or {}).items() if k != "trust_remote_code"}
    return HubDataset(path, name, revision, scratch, **options)


def fetch(leaf: Leaf, revision: str, directory: Path, scratch: Path) -> dict[str, tuple[Path, int]]:
    """Write each split of a leaf's dataset at `revision` as parquet; return {split: (file, rows)}.

    Downloads go to `scratch`. `UserError` in one sentence where the hub cannot be reached, asks for a licence, or
    lacks what is asked for.
    """
    dataset = dataset_of(leaf, revision, scratch)
    directory.mkdir(parents=True, exist_ok=True)
    written = {}
    for split in leaf.splits():
        log.info("fetching %s, split %s", dataset.label, split)
        try:
            rows = dataset.load(split)
        except UserError as error:
            raise UserError(
                f"benchmark.task: {leaf.name!r} needs {leaf.config['dataset_path']}, and {error}"
            ) from error
        file = directory / f"{split}.parquet"
        rows.to_parquet(str(file))
        written[split] = (file, rows.num_rows)
    return written
