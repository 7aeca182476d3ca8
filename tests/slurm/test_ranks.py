"""A training run over two nodes: its ranks, what they are given, and how they end together."""

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psutil
import pytest

from tests.slowdown import until
from tests.slurm.conftest import SAVED_EVERY, Cluster, Record, Training, Workflow, pretraining_study, run

pytestmark = pytest.mark.slurm

PARALLEL = {"strategy": "ddp", "devices": 2, "nodes": 2}
NODE = "pretrain/wide"


@dataclass(frozen=True)
class Wide:
    """The run, built in two attempts: of the first one a rank was killed.

    records: Slurm's own. steps: the steps of its jobs as accounting has them: (nodes, tasks, state), by job.
    """

    workflow: Workflow
    records: list[Record]
    steps: dict[str, list[tuple[str, str, str]]]


def ranks(workflow: Workflow) -> dict[int, psutil.Process]:
    """The living ranks of the run."""
    found = {}
    for process in psutil.process_iter(["cmdline", "cwd"]):
        command = " ".join(process.info["cmdline"] or [])
        is_rank = (
            "-m effllm.runtime.start effllm.training.rank " in command and "effllm.training.launcher" not in command
        )
        if is_rank and process.info["cwd"] == str(workflow.path):
            with contextlib.suppress(psutil.NoSuchProcess):
                found[int(process.environ()["RANK"])] = process
    return found


@pytest.fixture(scope="module")
def wide(
    cluster: Cluster, undisturbed: Workflow, tiny_text: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Wide]:
    """The run, disturbed once."""
    study = pretraining_study(tiny_text, ("wide",), parallel=PARALLEL, micro_batch_size=1)
    workflow = Workflow(tmp_path_factory.mktemp("wide"), study)
    workflow.copy_parents(undisturbed)
    training = Training(workflow, "wide")
    training.hold()
    process = workflow.start("results/pretrain/wide/manifest.json", options=("--set-threads", "pretrain=1"))
    try:
        training.reach(SAVED_EVERY)
        first = ranks(workflow)
        assert sorted(first) == [0, 1, 2, 3]
        first[3].kill()
        training.release()
        until(
            lambda: not set(first.values()) & set(ranks(workflow).values()),
            "a rank that dies takes the others with it",
        )
        assert process.wait(timeout=600) == 0, workflow.output()
        records = cluster.records_of(workflow, NODE)
        yield Wide(workflow, records, {record.number: steps_of(record.number) for record in records})
    finally:
        workflow.stop()
        cluster.cancel_all()


def steps_of(number: str) -> list[tuple[str, str, str]]:
    """Slurm's steps of a job, without those that it makes itself."""
    fields = "--format=JobID,NNodes,NTasks,State"
    lines = run("sacct", "--noheader", "--parsable2", f"--jobs={number}", fields).splitlines()
    steps = [line.split("|") for line in lines if re.fullmatch(r"\d+\.\d+", line.split("|")[0])]
    return [(nodes, tasks, state.split()[0]) for _, nodes, tasks, state in steps]


def test_the_ranks_are_one_step_over_both_nodes(wide: Wide) -> None:
    for record in wide.records:
        assert record.resources["node"] == "2"
        # Whole nodes, because the traffic of another job would be in the figures.
        assert record.resources["gres/gpu:gh200"] == "8"
    assert [steps[0][:2] for steps in wide.steps.values()] == [("2", "2")] * 2
    assert [len(steps) for steps in wide.steps.values()] == [1, 1]


def test_a_dead_rank_ends_the_step_and_the_retry_goes_on(wide: Wide) -> None:
    assert [steps[0][2] == "COMPLETED" for steps in wide.steps.values()] == [False, True]
    assert Training(wide.workflow, "wide").resumed_from() == SAVED_EVERY


def test_ranks_have_logs_of_their_own(wide: Wide) -> None:
    records = wide.workflow.path / "results" / NODE / "records"
    assert {path.name for path in (records / "ranks").iterdir()} == {f"rank-{rank}.log" for rank in (1, 2, 3)}
    efficiency = json.loads((records / "efficiency.json").read_text())
    assert (efficiency["world_size"], efficiency["strategy"]) == (4, "ddp")


def test_four_ranks_learn_what_one_device_learns(wide: Wide, undisturbed: Workflow) -> None:
    """The same batches, summed in another order."""
    losses = [
        json.loads((workflow.path / "results" / "pretrain" / id / "training.json").read_text())["held_out_loss"]
        for workflow, id in ((wide.workflow, "wide"), (undisturbed, "quiet"))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=0.01)


def test_a_run_of_several_nodes_is_refused_without_slurm(
    undisturbed: Workflow, tiny_text: dict[str, Any], tmp_path: Any
) -> None:
    workflow = Workflow(tmp_path, pretraining_study(tiny_text, ("wide",), parallel=PARALLEL, micro_batch_size=1))
    workflow.copy_parents(undisturbed)
    with pytest.raises(AssertionError, match=r"parallel\.nodes: 2 nodes need Slurm, and this is no Slurm job"):
        workflow.local("results/pretrain/wide/manifest.json")
