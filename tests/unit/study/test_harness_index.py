"""The quick look-up of harness tasks against lm-eval's own index."""

import subprocess
import sys
from pathlib import Path

import pytest

from effllm.study.harness_index import harness_suggestions, harness_task_exists, tasks_folder

PAPER = ("mmlu_pro", "bbh", "gpqa", "ifeval", "math_hard", "musr")


@pytest.mark.parametrize("name", [f"leaderboard_{task}" for task in PAPER])
def test_the_tasks_of_the_paper_exist_and_are_found_without_reading_other_folders(name, monkeypatch):
    read = []
    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path) or read_bytes(path))
    assert harness_task_exists(name)
    assert read
    assert {path.relative_to(tasks_folder()).parts[0] for path in read} == {"leaderboard"}


@pytest.mark.parametrize("name", ["leaderboard_mmlu_prox", "no_such_task", "", "leaderboard", "..", "leaderboard/gpqa"])
def test_a_name_exists_only_as_a_whole(name):
    assert harness_task_exists(name) == (name == "leaderboard")


def test_a_misspelt_task_gets_the_right_one_as_suggestion():
    assert harness_suggestions("leaderboard_mmlu_prox")[0] == "leaderboard_mmlu_pro"
    assert harness_suggestions("helaswag")[0] == "hellaswag"


def test_the_look_up_imports_neither_the_harness_nor_torch():
    program = (
        "import sys; from effllm.study.harness_index import harness_task_exists\n"
        "assert harness_task_exists('leaderboard_gpqa')\n"
        "print([name for name in ('lm_eval', 'torch', 'transformers') if name in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


def test_the_look_up_agrees_with_the_harness_on_a_folder():
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(tasks_folder() / "leaderboard"), include_defaults=False)
    known = [*manager.all_subtasks, *manager.all_groups]
    assert len(known) > 40
    assert all(harness_task_exists(name) for name in known)
