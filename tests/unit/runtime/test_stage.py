"""The life cycle that stages share: leases, verified inputs, scratch for resuming, typed failures."""

import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from effllm.errors import CellFailure, UserError
from effllm.runtime.artifact import MANIFEST, Artifact
from effllm.runtime.launch import run_logged
from effllm.runtime.stage import CHECKPOINT_MARKER, Job, run
from effllm.stages import STAGES
from tests.conftest import spec_of

SPEC = spec_of("corpus", {"x": 1})


def _output(root: Path, id: str = "a") -> Path:
    return root / "results" / "corpus" / id


def _write(job: Job) -> None:
    (job.output / "payload.json").write_text(json.dumps({"x": job.spec["config"]["x"]}))


def test_a_finished_artifact_is_not_built_again(tmp_path: Path) -> None:
    calls = []

    def build(job: Job) -> None:
        calls.append(job.id)
        _write(job)

    for _ in range(2):
        run(STAGES["corpus"], build, spec=SPEC, inputs={}, output=_output(tmp_path))
    assert calls == ["a"]
    run(STAGES["corpus"], build, spec={**SPEC, "config": {"x": 2}}, inputs={}, output=_output(tmp_path))
    assert calls == ["a", "a"]


def test_a_manifest_that_was_deleted_is_put_back_without_building(tmp_path: Path) -> None:
    artifact = run(STAGES["corpus"], _write, spec=SPEC, inputs={}, output=_output(tmp_path))
    (artifact.directory / MANIFEST).unlink()

    def build(job: Job) -> None:
        raise AssertionError("nothing has changed, so nothing is to be built")

    assert run(STAGES["corpus"], build, spec=SPEC, inputs={}, output=_output(tmp_path)).sha256 == artifact.sha256


def test_a_damaged_artifact_is_built_again(tmp_path: Path) -> None:
    artifact = run(STAGES["corpus"], _write, spec=SPEC, inputs={}, output=_output(tmp_path))
    (artifact.directory / "payload.json").write_text("{}")
    run(STAGES["corpus"], _write, spec=SPEC, inputs={}, output=_output(tmp_path)).verify()


def test_two_writers_of_one_artifact_take_turns(tmp_path: Path) -> None:
    active, most, built = [0], [0], [0]

    def build(job: Job) -> None:
        active[0] += 1
        built[0] += 1
        most[0] = max(most[0], active[0])
        time.sleep(0.2)
        _write(job)
        active[0] -= 1

    arguments = {"spec": SPEC, "inputs": {}, "output": _output(tmp_path)}
    threads = [threading.Thread(target=run, args=(STAGES["corpus"], build), kwargs=arguments) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 1
    assert built[0] == 1


def test_scratch_survives_a_crash_of_the_same_spec_only(tmp_path: Path) -> None:
    found: list[bool] = []

    def crash(job: Job) -> None:
        found.append((job.scratch / "checkpoint").exists())
        (job.scratch / "checkpoint").touch()
        raise RuntimeError("killed")

    for spec in (SPEC, SPEC, {**SPEC, "config": {"x": 2}}):
        with pytest.raises(RuntimeError):
            run(STAGES["corpus"], crash, spec=spec, inputs={}, output=_output(tmp_path))
    assert found == [False, True, False]
    assert not (_output(tmp_path) / MANIFEST).exists()


def test_a_checkpoint_is_not_deleted_by_another_number_of_ranks(tmp_path: Path) -> None:
    """What is lost would be hours of work; figures of one row are of one number of ranks."""
    output = tmp_path / "results" / "pretrain" / "a"

    def trained(parallel: dict[str, Any], micro_batch_size: int = 4, steps: int = 9, checkpoint: int = 0) -> list[str]:
        """What the scratch holds when the run begins; it is killed after a checkpoint is written, if one is."""
        found: list[str] = []

        def build(job: Job) -> None:
            found.extend(sorted(path.name for path in job.scratch.iterdir()))
            if checkpoint:
                (job.scratch / f"checkpoint-{checkpoint}").mkdir(exist_ok=True)
                (job.scratch / f"checkpoint-{checkpoint}" / CHECKPOINT_MARKER).touch()
            raise RuntimeError("killed")

        config = {"parallel": parallel, "micro_batch_size": micro_batch_size, "max_steps": steps}
        with pytest.raises(RuntimeError, match="killed"):
            run(STAGES["pretrain"], build, spec=spec_of("pretrain", config), inputs={}, output=output)
        return found

    two, four = ({"strategy": "zero3", "devices": devices} for devices in (2, 4))
    # Without a checkpoint nothing is lost.
    assert trained(four) == trained(two, checkpoint=3) == []
    with pytest.raises(UserError) as refused:
        trained(four, micro_batch_size=2)
    assert str(refused.value) == (
        f"pretrain/a has a checkpoint in {tmp_path}/results/.scratch/pretrain/a/work that was trained with parallel: "
        '{"devices": 2, "strategy": "zero3"}, micro_batch_size: 4, and the study now says parallel: {"devices": 4, '
        '"strategy": "zero3"}, micro_batch_size: 2, with which it does not go on: set that back, or delete the '
        "directory to begin anew."
    )
    assert trained(two) == ["checkpoint-3"]
    # Another change of the study begins the run anew, as ever.
    assert trained(four, steps=10) == []
    assert trained(two, checkpoint=5) == []
    shutil.rmtree(tmp_path / "results" / ".scratch" / "pretrain" / "a" / "work")
    assert trained(four) == []


def test_a_failed_parent_passes_its_status_on(tmp_path: Path) -> None:
    def fail(job: Job) -> None:
        raise CellFailure("unsupported", "no kernel for it")

    parent = run(STAGES["corpus"], fail, spec=SPEC, inputs={}, output=_output(tmp_path, "parent"))
    child = run(
        STAGES["corpus"],
        _write,
        spec=SPEC,
        inputs={"corpus": [parent.directory / MANIFEST]},
        output=_output(tmp_path, "child"),
    )
    assert child.manifest.status == "unsupported"
    assert child.manifest.reason == "corpus/parent: no kernel for it"


def test_a_tampered_input_is_refused_before_any_work(tmp_path: Path) -> None:
    parent = run(STAGES["corpus"], _write, spec=SPEC, inputs={}, output=_output(tmp_path, "parent"))
    (parent.directory / "payload.json").write_text("tampered")
    with pytest.raises(UserError, match=r"payload\.json"):
        run(
            STAGES["corpus"],
            _write,
            spec=SPEC,
            inputs={"c": [parent.directory / MANIFEST]},
            output=_output(tmp_path, "child"),
        )


def test_a_spec_of_another_stage_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="version 99"):
        run(STAGES["corpus"], _write, spec={**SPEC, "version": 99}, inputs={}, output=_output(tmp_path))


def test_a_spec_that_is_no_slice_of_a_study_is_refused_with_its_key(tmp_path: Path) -> None:
    from effllm.study.evaluation import InferenceProtocol

    def build(job: Job) -> None:
        job.config(InferenceProtocol)

    with pytest.raises(UserError, match=r"--spec: config\.workloads: Field required"):
        run(STAGES["corpus"], build, spec=SPEC, inputs={}, output=_output(tmp_path))


def _stage_program(root: Path, body: str) -> list[str]:
    program = root / "program.py"
    program.write_text(
        "import sys\nfrom effllm.runtime.stage import main\nfrom effllm.stages import STAGES\n"
        f"def build(job):\n    {body}\nmain(STAGES['corpus'], build, sys.argv[1:])\n"
    )
    spec = root / "spec.json"
    spec.write_text(json.dumps(SPEC))
    return [sys.executable, str(program), "--spec", str(spec), "--output", str(_output(root))]


def test_a_users_error_ends_the_program_with_a_sentence(tmp_path: Path) -> None:
    body = "from effllm.errors import UserError; raise UserError('the file is bad: mend it.')"
    result = subprocess.run(_stage_program(tmp_path, body), capture_output=True, text=True)
    assert result.returncode == 2
    assert "error: the file is bad: mend it." in result.stderr
    assert "Traceback" not in result.stderr


def test_a_full_disk_ends_the_program_with_a_sentence(tmp_path: Path) -> None:
    # /dev/full answers every write with "no space left on device".
    body = "open('/dev/full', 'w').write('x' * 100_000)"
    result = subprocess.run(_stage_program(tmp_path, body), capture_output=True, text=True)
    assert result.returncode == 2, result.stderr
    assert "No space left on device" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (_output(tmp_path) / MANIFEST).exists()


def test_the_launcher_relays_progress_and_keeps_the_log(tmp_path: Path, capfd: Any) -> None:
    argv = [sys.executable, "-c", "print('progress: half'); print('detail'); raise SystemExit(3)"]
    code = run_logged(argv, log=tmp_path / "logs" / "x.log", environment={"PATH": ""})
    assert code == 3
    assert (tmp_path / "logs" / "x.log").read_text() == "progress: half\ndetail\n"
    assert capfd.readouterr().err == "half\n"


def test_a_stage_dies_with_its_launcher(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    child = f"import os, time; open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    launcher = (
        "import os, sys\nfrom pathlib import Path\nfrom effllm.runtime.launch import run_logged\n"
        f"run_logged([sys.executable, '-c', {child!r}], log=Path({str(tmp_path / 'log')!r}), "
        "environment=dict(os.environ))"
    )
    process = subprocess.Popen([sys.executable, "-c", launcher])
    deadline = time.monotonic() + 30
    while not (pid_file.exists() and pid_file.read_text()):
        assert time.monotonic() < deadline, "the child never started"
        time.sleep(0.05)
    process.kill()
    process.wait()
    stat = Path(f"/proc/{pid_file.read_text()}/stat")
    while stat.exists() and stat.read_text().split()[2] != "Z":
        assert time.monotonic() < deadline, "the child outlived its launcher"
        time.sleep(0.05)


def test_artifacts_open_where_they_were_published(tmp_path: Path) -> None:
    run(STAGES["corpus"], _write, spec=SPEC, inputs={}, output=_output(tmp_path))
    artifact = Artifact.open(_output(tmp_path) / MANIFEST)
    assert artifact.json("payload.json") == {"x": 1}
    assert artifact.manifest.spec == SPEC
