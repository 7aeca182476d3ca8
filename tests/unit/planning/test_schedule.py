"""Wall time of a graph by list scheduling, against schedules worked out by hand and against bounds."""

import random

import pytest

from effllm.planning.schedule import Task, makespan


def _task(seconds: float, *after: str, devices: int = 1) -> Task:
    return Task(seconds, devices, after)


def test_a_chain_takes_its_sum_on_any_number_of_devices() -> None:
    chain = {"a": _task(1), "b": _task(2, "a"), "c": _task(3, "b")}
    assert makespan(chain, 1) == makespan(chain, 8) == 6


def test_independent_tasks_share_the_devices() -> None:
    assert makespan({str(number): _task(2) for number in range(6)}, 4) == 4


def test_the_longest_way_to_the_end_goes_first() -> None:
    tasks = {"short": _task(1), "other": _task(1), "start": _task(1), "end": _task(3, "start")}
    assert makespan(tasks, 2) == 4


def test_a_task_of_several_devices_waits_for_all_of_them() -> None:
    assert makespan({"one": _task(3), "wide": _task(2, devices=4)}, 4) == 5


def test_wide_tasks_alone_follow_each_other() -> None:
    tasks = {"data": _task(0, devices=0), "a": _task(5, "data", devices=4), "b": _task(7, "data", devices=4)}
    assert makespan(tasks, 4) == 12


def test_stages_of_the_cpu_run_beside_without_limit() -> None:
    tasks = {str(number): _task(2, devices=0) for number in range(9)}
    assert makespan(tasks | {"gpu": _task(2)}, 1) == 2


def test_a_task_of_more_devices_than_there_are_is_named() -> None:
    with pytest.raises(ValueError, match="wide needs 4 devices, and there are 2"):
        makespan({"wide": _task(1, devices=4)}, 2)


def test_nothing_takes_no_time() -> None:
    assert makespan({}, 1) == 0


@pytest.mark.parametrize("seed", range(20))
def test_random_graphs_stay_between_the_bounds(seed: int) -> None:
    """No schedule beats the longest chain or the work over the devices; list scheduling stays below their sum."""
    generator = random.Random(seed)
    tasks: dict[str, Task] = {}
    for number in range(60):
        after = tuple(generator.sample(sorted(tasks), k=min(len(tasks), generator.randint(0, 3))))
        tasks[f"{number:02}"] = Task(generator.uniform(0, 10), 1, after)
    ends: dict[str, float] = {}
    for name, task in tasks.items():
        ends[name] = task.seconds + max((ends[parent] for parent in task.after), default=0.0)
    work, chain, devices = sum(task.seconds for task in tasks.values()), max(ends.values()), 4
    found = makespan(tasks, devices)
    assert max(chain, work / devices) - 1e-9 <= found <= work / devices + chain + 1e-9
    assert makespan(tasks, 1) == pytest.approx(work)
