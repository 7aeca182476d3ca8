"""A real Slurm for the session, and the workflow on it with profiles/gh200 and nothing but the site's names changed."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.conftest import REPOSITORY, SNAKEMAKE, cut_down
from tests.programs import run_apart
from tests.slowdown import Held, environment, until

CLUSTER = REPOSITORY / "tests" / "slurm" / "cluster"
# Names that no profile has, so that only the overridden site block can lead there.
SITE = ["--default-resources", "slurm_partition=superchips", "slurm_account=lab"]
# The profile waits a minute for a file to appear.
PACE = ["--latency-wait", "5"]
NODES = ("gh1", "gh2")
STEPS, SAVED_EVERY = 60, 10
# Threads of several jobs share this machine's cores: one that waits must not keep its core busy.
ENVIRONMENT = os.environ | {"OMP_WAIT_POLICY": "passive"}


def run(*command: str) -> str:
    """Standard output of a command that must succeed."""
    result = subprocess.run(command, capture_output=True, text=True)
    assert not result.returncode, f"{' '.join(command)}: {result.stdout}{result.stderr}"
    return result.stdout


@dataclass(frozen=True)
class Record:
    """What Slurm's accounting holds of one run of one job; a requeued job has several."""

    number: str
    node: str
    state: str
    partition: str
    account: str
    minutes: int
    resources: dict[str, str]
    host: str


class Cluster:
    """The running cluster."""

    def __init__(self, state: Path):
        self.state = state

    def records(self, since: str = "now-1hour") -> list[Record]:
        """Accounting of the workflow's jobs, oldest first; repeated runs of one job apart."""
        fields = "JobIDRaw,Comment,State,Partition,Account,TimelimitRaw,AllocTRES,NodeList"
        text = run(
            "sacct", "--allocations", "--duplicates", "--noheader", "--parsable2", f"--starttime={since}",
            f"--format={fields}",
        )  # fmt: skip
        records = []
        for line in text.splitlines():
            number, comment, state, partition, account, minutes, resources, host = line.split("|")
            node = comment.removeprefix("rule_").replace("_wildcards_", "/")
            granted = dict(item.split("=", 1) for item in resources.split(",") if item)
            records.append(Record(number, node, state.split()[0], partition, account, int(minutes), granted, host))
        return records

    def records_of(self, workflow: "Workflow", node: str = "*/*") -> list[Record]:
        """Accounting of the ended jobs of one node or of all, once it has their ends: it lags behind the queue."""
        numbers = set(workflow.numbers(node))

        def ended() -> list[Record]:
            records = [record for record in self.records() if record.number in numbers]
            is_whole = {record.number for record in records} == numbers
            return records if is_whole and not any(r.state in ("PENDING", "RUNNING") for r in records) else []

        return until(ended, f"the accounting has the ends of {numbers}")

    def queued(self) -> dict[str, str]:
        """States of the jobs in the queue, by number."""
        lines = run("squeue", "--noheader", "--format=%i %T").splitlines()
        return dict(line.split() for line in lines)

    def await_end(self, number: str) -> None:
        """Return once a job has left the queue."""
        until(lambda: number not in self.queued(), f"job {number} has ended")

    def host_of(self, number: str) -> str:
        """The node that a job runs on."""
        return run("squeue", "--noheader", "--format=%N", f"--jobs={number}").strip()

    def cancel_all(self) -> None:
        """Empty the queue."""
        run("scancel", "--user=root")
        until(lambda: not self.queued(), "the queue is empty")

    def stop_controller(self) -> None:
        """End slurmctld, as a restart of its host would."""
        pid = int((self.state / "run" / "slurmctld.pid").read_text())
        os.kill(pid, signal.SIGTERM)
        until(lambda: not Path(f"/proc/{pid}").exists(), "slurmctld ended")

    def start_controller(self) -> None:
        """Start slurmctld again from what it has saved."""
        run("slurmctld")
        until(lambda: subprocess.run(["scontrol", "ping"], capture_output=True).returncode == 0, "slurmctld answers")

    def power_off(self, host: str) -> None:
        """Kill a node's daemon and everything that runs on it, then tell Slurm that it is down."""
        jobs = run("squeue", "--noheader", "--format=%i", f"--nodelist={host}").split()
        titles = tuple(f"slurmstepd: [{job}." for job in jobs)
        pid_file = self.state / "run" / f"slurmd-{host}.pid"
        daemon = psutil.Process(int(pid_file.read_text()))
        steps = [p for p in psutil.process_iter(["cmdline"]) if " ".join(p.info["cmdline"] or []).startswith(titles)]
        for process in [daemon, *steps, *(child for step in steps for child in step.children(recursive=True))]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        # A killed process may keep its number for seconds, until somebody has asked how it ended.
        pid_file.unlink()
        run("scontrol", "update", f"nodename={host}", "state=down", "reason=power")

    def power_on(self, host: str) -> None:
        """Bring a node back: it is up when its daemon has registered (ReturnToService)."""
        run(str(CLUSTER), "node", str(self.state), host.removeprefix("gh"))
        # "comp": up, with the lost job's end still to be confirmed.
        up = ("idle", "comp", "mix")
        until(lambda: run("sinfo", "--noheader", f"--nodes={host}", "--format=%t").startswith(up), f"{host} is up")


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Two nodes, up for the session; skipped where they cannot be."""
    if os.geteuid():
        pytest.skip("the test cluster needs root")
    if not shutil.which("apt-get"):
        pytest.skip("the test cluster is made of Debian packages, and this system has no apt-get")
    # Not below pytest's directory, which is private to this user: Slurm's daemons have users of their own.
    state = Path(tempfile.mkdtemp(prefix="effllm-slurm-"))
    subprocess.run([str(CLUSTER), "install"], check=True)
    try:
        subprocess.run([str(CLUSTER), "start", str(state)], check=True)
        cluster = Cluster(state)
        yield cluster
        cluster.cancel_all()
    finally:
        subprocess.run([str(CLUSTER), "stop", str(state)], check=True)
        shutil.rmtree(state)


class Workflow:
    """A directory with a study, and the workflow in it: on the cluster, or on this machine."""

    def __init__(self, path: Path, study: dict[str, Any]):
        self.path = path
        self.study = path / "study.yaml"
        self.study.write_text(yaml.safe_dump(study))
        self._running: list[subprocess.Popen[bytes]] = []

    def command(self, *targets: str, options: tuple[str, ...] = ()) -> list[str]:
        """Snakemake with the gh200 profile and this cluster's names."""
        place = ["--directory", str(self.path), "--profile", "profiles/gh200"]
        return [*SNAKEMAKE, *place, *SITE, *PACE, *options, "--config", f"study={self.study}", "--", *targets]

    def start(self, *targets: str, options: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
        """Snakemake in the background; its output goes to `snakemake.log`, after what is there."""
        with open(self.path / "snakemake.log", "ab") as log:
            process = subprocess.Popen(
                self.command(*targets, options=options),
                cwd=REPOSITORY,
                env=environment(ENVIRONMENT),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._running.append(process)
        return process

    def local(self, *targets: str, threads: int = 2) -> None:
        """Build targets on this machine, with the threads that a job of the cluster has here: at most its cores."""
        stages = ("pretrain", "finetune", "quantize", "evaluate", "profile")
        set_threads = ["--set-threads", *(f"{stage}={threads}" for stage in stages)]
        # Two jobs at a time, as there.
        place = ["--directory", str(self.path), "--profile", "profiles/local", "--cores", str(2 * threads)]
        command = [*SNAKEMAKE, *place, *set_threads, "--config", f"study={self.study}", "--", *targets]
        result = run_apart(command, REPOSITORY)
        assert not result.returncode, result.stdout + result.stderr

    def output(self) -> str:
        """What the runs in the background have printed."""
        return (self.path / "snakemake.log").read_text()

    def numbers(self, node: str) -> list[str]:
        """Slurm's numbers of the jobs started for a node (`pretrain/a`), oldest first."""
        rule, id = node.split("/")
        return sorted((log.stem for log in self.path.glob(f"logs/slurm/rule_{rule}/{id}/*.log")), key=int)

    def stage_log(self, node: str) -> str:
        """The log of a node's latest attempt."""
        path = self.path / "logs" / f"{node}.log"
        return path.read_text() if path.exists() else ""

    def slurm_log(self, node: str, number: str) -> str:
        """What Slurm has kept of one job's output."""
        rule, id = node.split("/")
        return (self.path / "logs" / "slurm" / f"rule_{rule}" / id / f"{number}.log").read_text()

    def copy_parents(self, other: "Workflow") -> None:
        """Take over what another workflow trains on."""
        for stage in ("corpus", "tokenizer", "tokens"):
            shutil.copytree(other.path / "results" / stage, self.path / "results" / stage)

    def manifest(self, node: str) -> dict[str, Any]:
        """A node's manifest."""
        return json.loads((self.path / "results" / node / "manifest.json").read_text())

    def stop(self) -> None:
        """Kill what `start` started and has not ended."""
        for process in self._running:
            if process.poll() is None:
                process.kill()
                process.wait()


class Training(Held):
    """A pretraining run of a workflow on the cluster."""

    def __init__(self, workflow: Workflow, id: str):
        super().__init__(workflow.path / "results" / ".scratch" / "pretrain" / id)
        self.node = f"pretrain/{id}"
        self.workflow = workflow

    def resumed_from(self) -> int | None:
        """The step from which the running process goes on."""
        found = re.search(r"going on from step (\d+)", self.workflow.stage_log(self.node))
        return int(found.group(1)) if found else None

    def hold(self, step: int = SAVED_EVERY) -> None:
        """Let the run wait after its first checkpoint, or a later one."""
        super().hold(step)


def pretraining_study(tiny: dict[str, Any], runs: tuple[str, ...], **changes: Any) -> dict[str, Any]:
    """The cut-down study with some pretraining runs alone, all alike, with checkpoints to be disturbed at."""
    study = cut_down(tiny)
    recipe = study["pretraining"]["llama-1m"]
    recipe |= {"max_steps": STEPS, "checkpoint_every_steps": SAVED_EVERY, **changes}
    return study | {"pretraining": dict.fromkeys(runs, recipe), "models": {}, "finetuning": {}, "tables": {}}


@pytest.fixture(scope="session")
def undisturbed(tiny_text: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Workflow:
    """A local run of the training that the faults hit. What it trains on is where the others start from."""
    workflow = Workflow(tmp_path_factory.mktemp("undisturbed"), pretraining_study(tiny_text, ("quiet",)))
    workflow.local("results/pretrain/quiet/manifest.json", threads=1)
    return workflow
