"""A training run over two nodes: its ranks, what they are given, and how they end together."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psutil
import pytest

from tests.slurm.conftest import STEPS, Cluster, Training, Workflow, pretraining_study, run, until

PARALLEL = {"strategy": "ddp", "devices": 2, "nodes": 2}
NODE = "pretrain/wide"


@dataclass(frozen=True)
class Wide:
    """The run, built in three attempts: one was warned, of one a rank was killed, and the last one went through.

    steps: the steps of Slurm's jobs as accounting has them: (nodes, tasks, state), by job.
    """

    workflow: Workflow
    numbers: list[str]
    steps: dict[str, list[tuple[str, str, str]]]


def ranks(workflow: Workflow) -> dict[int, psutil.Process]:
    """The living ranks of the run."""
    found = {}
    for process in psutil.process_iter(["cmdline", "cwd"]):
        command = " ".join(process.info["cmdline"] or [])
        is_rank = "-m effllm.training.ranks" in command and "torch.distributed.run" not in command
        if is_rank and process.info["cwd"] == str(workflow.path):
            found[int(process.environ()["RANK"])] = process
    return found


@pytest.fixture(scope="module")
def wide(
    cluster: Cluster, undisturbed: Workflow, tiny_text: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Wide]:
    """The run, disturbed twice."""
    study = pretraining_study(tiny_text, ("wide",), parallel=PARALLEL, micro_batch_size=1)
    workflow = Workflow(tmp_path_factory.mktemp("wide"), study)
    workflow.copy_parents(undisturbed)
    process = workflow.start("results/pretrain/wide/manifest.json", options=("--set-threads", "pretrain=1"))
    training = Training(workflow, "wide")
    try:
        until(training.steps, "a checkpoint")
        (first,) = workflow.numbers(NODE)
        assert sorted(ranks(workflow)) == [0, 1, 2, 3]
        run("scancel", "--signal=TERM", first)
        until(lambda: not ranks(workflow), "the ranks end together")
        until(lambda: len(workflow.numbers(NODE)) == 2, "a second attempt")
        until(lambda: max(training.steps()) > (training.resumed_from() or STEPS), "a checkpoint of its own")
        ranks(workflow)[3].kill()
        until(lambda: not ranks(workflow), "a rank that dies takes the others with it", timeout_s=30)
        assert process.wait(timeout=300) == 0, workflow.output()
        numbers = workflow.numbers(NODE)
        yield Wide(workflow, numbers, {number: steps_of(number) for number in numbers})
    finally:
        workflow.stop()
        cluster.cancel_all()


def steps_of(number: str) -> list[tuple[str, str, str]]:
    """Slurm's steps of a job, without those that it makes itself."""
    fields = "--format=JobID,NNodes,NTasks,State"
    lines = run("sacct", "--noheader", "--parsable2", f"--jobs={number}", fields).splitlines()
    steps = [line.split("|") for line in lines if re.fullmatch(r"\d+\.\d+", line.split("|")[0])]
    return [(nodes, tasks, state.split()[0]) for _, nodes, tasks, state in steps]


def test_the_ranks_are_one_step_over_both_nodes(wide: Wide, cluster: Cluster) -> None:
    for record in cluster.records_of(wide.workflow, NODE):
        assert record.resources["node"] == "2"
        # Whole nodes, because the traffic of another job would be in the figures.
        assert record.resources["gres/gpu:gh200"] == "8"
    assert [steps[0][:2] for steps in wide.steps.values()] == [("2", "2")] * 3
    assert [len(steps) for steps in wide.steps.values()] == [1, 1, 1]


def test_warned_ranks_save_one_checkpoint_together(wide: Wide) -> None:
    log = wide.workflow.slurm_log(NODE, wide.numbers[0])
    assert re.search(rf"wide was told to stop and has saved step \d+ of {STEPS}: run again", log), log


def test_a_dead_rank_ends_the_step_and_the_retry_goes_on(wide: Wide) -> None:
    assert [steps[0][2] == "COMPLETED" for steps in wide.steps.values()] == [False, False, True]
    assert Training(wide.workflow, "wide").resumed_from() > 0


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
