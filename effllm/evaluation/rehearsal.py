"""A benchmark run once without a model and without a network, before any GPU waits for it.

Every item is prompted and scored as the evaluate stage does it, on answers that are at hand. Libraries and data that
a task asks for only when it scores, rows that its functions cannot read, and metrics that it does not compute are
found here.
"""

import logging
import socket
import unittest.mock
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lm_eval.api.model import LM
from lm_eval.evaluator import evaluate

from effllm.errors import UserError
from effllm.evaluation.run_time_needs import NLTK_DATA, use_nltk_data
from effllm.evaluation.scores import metric_key
from effllm.evaluation.tasks import load_tasks, write_task_files
from effllm.results.benchmark import Benchmark

log = logging.getLogger(__name__)
# Two sentences, so that checkers of text have something to check.
_ANSWER = "This is the first sentence. It is followed by another one."


def rehearse(benchmark: Benchmark, payload: Path, folder: Path) -> None:
    """Prompt and score every item of `benchmark`, whose rows are in `payload`.

    `folder`, which is empty, takes the task files. `UserError` if the task cannot be scored in this environment.
    """
    try:
        with _no_network():
            write_task_files(benchmark, payload, folder)
            use_nltk_data(payload / NLTK_DATA)
            tasks = load_tasks(folder, benchmark.task, seed=0)
            answers = _Answers(tasks["tasks"])
            results = evaluate(lm=answers, task_dict=tasks, limit=benchmark.limit, bootstrap_iters=0, log_samples=False)
    except Exception as error:
        # A task's own functions raise what they like; the log keeps where.
        log.exception("rehearsing %s", benchmark.task)
        first_line = (str(error).splitlines() or [""])[0][:200]
        raise UserError(
            f"benchmark.task: {benchmark.task!r} cannot be scored in this environment "
            f"({type(error).__name__}: {first_line}); correct the revision, or install this package's requirements."
        ) from error
    values = results["results"].get(benchmark.task) or results["groups"][benchmark.task]
    metric_key(values, benchmark.metric, benchmark.task)


class _Answers(LM):
    """Likelihoods that are all alike, and an item's own target for what it would generate, where that is a text."""

    def __init__(self, tasks: dict[str, Any]):
        super().__init__()
        self._tasks = tasks

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        return [(-1.0, False)] * len(requests)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[float]:
        return [-1.0] * len(requests)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
        targets = [self._tasks[request.task_name].doc_to_target(request.doc) for request in requests]
        return [target if isinstance(target, str) and target.strip() else _ANSWER for target in targets]


@contextmanager
def _no_network() -> Iterator[None]:
    """Refuse connections, as a node without a network does."""

    def refuse(self: socket.socket, address: Any) -> None:
        raise ConnectionRefusedError(f"a connection to {address} was asked for, which evaluations do not have")

    with unittest.mock.patch.object(socket.socket, "connect", refuse):
        yield
