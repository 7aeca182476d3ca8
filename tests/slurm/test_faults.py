"""What may go wrong on a cluster: nothing finished is lost or built twice, and training goes on where it was saved."""

import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.slowdown import until
from tests.slurm.conftest import (
    NODES,
    SAVED_EVERY,
    STEPS,
    Cluster,
    Record,
    Training,
    Workflow,
    pretraining_study,
    run,
)

pytestmark = pytest.mark.slurm

# Three runs at a time share two cores here.
ONE_THREAD = ("--set-threads", "pretrain=1")


def manifests(*ids: str) -> list[str]:
    """Targets: the manifests of pretraining runs."""
    return [f"results/pretrain/{id}/manifest.json" for id in ids]


def assert_as_undisturbed(workflow: Workflow, id: str, undisturbed: Workflow) -> None:
    """The run has ended with the weights of the undisturbed one, bit for bit."""
    assert workflow.manifest(f"pretrain/{id}")["payload"] == undisturbed.manifest("pretrain/quiet")["payload"]


@dataclass(frozen=True)
class Ended:
    """A workflow of three training runs whose jobs were ended once each, at their first checkpoint or before it.

    records: Slurm's own, oldest first, by run.
    """

    workflow: Workflow
    records: dict[str, list[Record]]


@pytest.fixture(scope="module")
def ended(
    cluster: Cluster, undisturbed: Workflow, tiny_text: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Ended]:
    """`large` gets too little memory at first, `cancelled` is cancelled, `late` is near the end of its time."""
    ids = ("large", "cancelled", "late")
    workflow = Workflow(tmp_path_factory.mktemp("ended"), pretraining_study(tiny_text, ids))
    workflow.copy_parents(undisturbed)
    # Too little for a process with PyTorch. What is set on the command line takes the place of the profile's.
    memory = "pretrain:mem_mb=400 if wildcards.id == 'large' and attempt == 1 else 9000"
    options = (*ONE_THREAD, "--set-resources", "pretrain:gpu_model=gh200", memory)
    runs = {id: Training(workflow, id) for id in ids}
    for training in runs.values():
        training.hold()
    process = workflow.start(*manifests(*ids), options=options)
    try:
        for id in ("cancelled", "late"):
            runs[id].reach(SAVED_EVERY)
        until(lambda: workflow.numbers("pretrain/large"), "a job of large")
        first = {id: workflow.numbers(f"pretrain/{id}")[0] for id in ids}
        run("scancel", first["cancelled"])
        # Warned five minutes before the end: at Slurm's next look at its jobs, twice a minute.
        run("scontrol", "update", f"jobid={first['late']}", "timelimit=5")
        for id in ("cancelled", "large"):
            cluster.await_end(first[id])
            runs[id].release()
        until(lambda: "Will exit after finishing" in workflow.slurm_log("pretrain/late", first["late"]), "a warning")
        runs["late"].release()
        assert process.wait(timeout=800) == 0, workflow.output()
        yield Ended(workflow, {id: cluster.records_of(workflow, f"pretrain/{id}") for id in ids})
    finally:
        workflow.stop()
        cluster.cancel_all()


def test_a_job_cancelled_from_outside_goes_on_from_its_checkpoint(ended: Ended, undisturbed: Workflow) -> None:
    assert [record.state for record in ended.records["cancelled"]] == ["CANCELLED", "COMPLETED"]
    assert Training(ended.workflow, "cancelled").resumed_from() == SAVED_EVERY
    assert_as_undisturbed(ended.workflow, "cancelled", undisturbed)


def test_a_job_near_its_time_limit_saves_at_once_and_goes_on_in_the_retry(ended: Ended, undisturbed: Workflow) -> None:
    first, second = ended.records["late"]
    assert (first.state, second.state) == ("FAILED", "COMPLETED")
    assert second.minutes > first.minutes
    said = re.search(
        rf"late was told to stop and has saved step (\d+) of {STEPS}: run again to go on from there",
        ended.workflow.slurm_log("pretrain/late", first.number),
    )
    assert said, "the job says why it ended"
    assert int(said.group(1)) > SAVED_EVERY
    assert Training(ended.workflow, "late").resumed_from() == int(said.group(1))
    assert_as_undisturbed(ended.workflow, "late", undisturbed)


def test_a_job_over_its_memory_gets_more_in_the_retry(ended: Ended, undisturbed: Workflow) -> None:
    first, second = ended.records["large"]
    assert first.state in ("FAILED", "OUT_OF_MEMORY") and second.state == "COMPLETED"
    assert (first.resources["mem"], second.resources["mem"]) == ("400M", "9000M")
    assert_as_undisturbed(ended.workflow, "large", undisturbed)


def test_no_job_is_left_and_no_node_built_twice(ended: Ended, cluster: Cluster) -> None:
    assert not cluster.queued()
    for records in ended.records.values():
        assert [record.state for record in records].count("COMPLETED") == 1


@dataclass
class Moved:
    """A training run that is moved about the cluster while it is under way: one job from its start to its end."""

    cluster: Cluster
    workflow: Workflow
    training: Training
    process: Any

    @property
    def number(self) -> str:
        """The job's number, which it keeps."""
        (number,) = self.workflow.numbers(self.training.node)
        return number

    @property
    def host(self) -> str:
        """The node that it runs on."""
        return self.cluster.host_of(self.number)

    def goes_on_elsewhere(self, step: int, host: str) -> None:
        """The same job runs on the other node, from the checkpoint of `step`; it waits again at its next one."""
        (other,) = set(NODES) - {host}
        until(lambda: self.host == other, f"the job runs on {other}")
        self.training.reach(step + SAVED_EVERY)
        until(lambda: self.training.resumed_from() == step, f"the log says that it went on from step {step}")


@pytest.fixture(scope="module")
def moved(
    cluster: Cluster, undisturbed: Workflow, tiny_text: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Moved]:
    """The run under way, waiting at a checkpoint. Tests disturb it in their order, and each leaves it so."""
    workflow = Workflow(tmp_path_factory.mktemp("moved"), pretraining_study(tiny_text, ("moved",)))
    workflow.copy_parents(undisturbed)
    training = Training(workflow, "moved")
    training.hold()
    process = workflow.start(*manifests("moved"), options=ONE_THREAD)
    try:
        training.reach(SAVED_EVERY)
        yield Moved(cluster, workflow, training, process)
    finally:
        workflow.stop()
        cluster.cancel_all()


def test_jobs_outlive_a_restart_of_the_controller(moved: Moved) -> None:
    following = max(moved.training.steps()) + SAVED_EVERY
    moved.cluster.stop_controller()
    try:
        moved.training.hold(following)
        moved.training.reach(following)
    finally:
        moved.cluster.start_controller()
    assert moved.cluster.queued()[moved.number] == "RUNNING"
    assert moved.process.poll() is None, moved.workflow.output()


def test_a_preempted_job_is_requeued_and_goes_on(moved: Moved) -> None:
    step, host = max(moved.training.steps()), moved.host
    urgent = ["--partition=urgent", "--account=lab", f"--nodelist={host}", "--exclusive", "--time=10"]
    number = run("sbatch", "--parsable", *urgent, "--output=/dev/null", "--wrap=sleep 600").strip()
    try:
        moved.goes_on_elsewhere(step, host)
    finally:
        run("scancel", number)


def test_a_job_of_a_lost_node_is_requeued_and_goes_on(moved: Moved) -> None:
    step, host = max(moved.training.steps()), moved.host
    moved.cluster.power_off(host)
    try:
        moved.goes_on_elsewhere(step, host)
    finally:
        moved.cluster.power_on(host)


def test_a_killed_workflow_started_again_waits_for_its_job_and_submits_nothing(
    moved: Moved, undisturbed: Workflow
) -> None:
    moved.process.send_signal(signal.SIGKILL)
    moved.process.wait()
    again = moved.workflow.start(*manifests("moved"), options=ONE_THREAD)
    sentence = f"waiting for 1 job of an earlier run in this directory, which Slurm still has: {moved.number} (pretrain"
    until(lambda: sentence in moved.workflow.output(), "the workflow names the job it waits for")
    moved.training.release()
    assert again.wait(timeout=300) == 0, moved.workflow.output()
    assert "Nothing to be done" in moved.workflow.output()
    assert moved.workflow.numbers(moved.training.node) == [moved.number]
    assert not moved.cluster.queued()
    assert_as_undisturbed(moved.workflow, "moved", undisturbed)
