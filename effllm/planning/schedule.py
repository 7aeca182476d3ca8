"""How long a graph takes on so many devices: list scheduling, the longest way to the end first (Graham 1969)."""

import heapq
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """One node: seconds, devices it holds meanwhile (0 for none), and the tasks it waits for."""

    seconds: float
    devices: int
    after: tuple[str, ...]


def makespan(tasks: Mapping[str, Task], devices: int) -> float:
    """Seconds until every task has ended; tasks without devices run beside, without limit.

    `tasks` name every predecessor before its successors. Raises ValueError for a task of more devices than there are.
    """
    for name, task in tasks.items():
        if task.devices > devices:
            raise ValueError(f"{name} needs {task.devices} devices, and there are {devices}")
    priority = _ways_to_the_end(tasks)
    waiting = {name: len(task.after) for name, task in tasks.items()}
    children: dict[str, list[str]] = {name: [] for name in tasks}
    for name, task in tasks.items():
        for parent in task.after:
            children[parent].append(name)
    started = [name for name, count in waiting.items() if not count]
    ready: list[tuple[float, str]] = []
    running: list[tuple[float, str]] = []
    now, free = 0.0, devices
    while started or ready or running:
        for name in started:
            if tasks[name].devices:
                heapq.heappush(ready, (-priority[name], name))
            else:
                heapq.heappush(running, (now + tasks[name].seconds, name))
        held_back = []
        while ready and free:
            item = heapq.heappop(ready)
            task = tasks[item[1]]
            if task.devices > free:
                held_back.append(item)
                continue
            free -= task.devices
            heapq.heappush(running, (now + task.seconds, item[1]))
        for item in held_back:
            heapq.heappush(ready, item)
        now, ended = heapq.heappop(running)
        free += tasks[ended].devices
        for child in children[ended]:
            waiting[child] -= 1
        started = [child for child in children[ended] if not waiting[child]]
    return now


def _ways_to_the_end(tasks: Mapping[str, Task]) -> dict[str, float]:
    longest = {name: task.seconds for name, task in tasks.items()}
    for name in reversed(list(tasks)):
        for parent in tasks[name].after:
            longest[parent] = max(longest[parent], tasks[parent].seconds + longest[name])
    return longest
