"""What Slurm's queue tells about an earlier run, from a squeue of the test's own."""

import shutil
import threading
import time
from pathlib import Path

import pytest

from effllm.errors import UserError
from effllm.runtime import slurm
from effllm.runtime.slurm import await_jobs_of, has_ended, jobs_of, require_slurm


@pytest.fixture
def squeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory alone on PATH; write `answer` to let its squeue print lines, `error` to let it fail."""
    programs = tmp_path / "bin"
    programs.mkdir()
    script = programs / "squeue"
    script.write_text(
        f"#!{shutil.which('sh')}\n"
        f'if [ -e {tmp_path}/error ]; then while read -r l; do echo "$l" >&2; done < {tmp_path}/error; exit 1; fi\n'
        f'while read -r l; do echo "$l"; done < {tmp_path}/answer\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    return tmp_path


def test_jobs_are_this_directorys_and_named_after_their_nodes(squeue: Path) -> None:
    (squeue / "link").symlink_to(squeue)
    (squeue / "answer").write_text(
        f"12|RUNNING|{squeue}|rule_pretrain_wildcards_llama-1m\n"
        f"13|PENDING|{squeue}/link|rule_evaluate_wildcards_llama-1m.int4.perplexity\n"
        f"14|RUNNING|{squeue}/elsewhere|rule_pretrain_wildcards_llama-1m\n"
        f"15|RUNNING|{squeue}|(null)\n"
        "16|RUNNING||rule_x\n"
    )
    assert [str(job) for job in jobs_of(squeue)] == [
        "12 (pretrain llama-1m, RUNNING)",
        "13 (evaluate llama-1m.int4.perplexity, PENDING)",
    ]


def test_a_mute_controller_is_an_error_and_not_an_empty_queue(squeue: Path) -> None:
    (squeue / "error").write_text("slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n")
    with pytest.raises(UserError, match=r"Unable to contact slurm controller .* run again when the controller answers"):
        jobs_of(squeue)


def test_waiting_names_the_jobs_and_ends_with_them(
    squeue: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (squeue / "answer").write_text(f"12|RUNNING|{squeue}|rule_tokens_wildcards_docs\n")
    monkeypatch.setattr(slurm, "_PERIOD_S", 0.02)
    started = time.monotonic()
    threading.Timer(0.5, (squeue / "answer").write_text, args=[""]).start()
    await_jobs_of(squeue)
    assert time.monotonic() - started >= 0.5
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1, "said once, not at every look"
    assert "waiting for 1 job of an earlier run" in lines[0]
    assert "12 (tokens docs, RUNNING)" in lines[0] and lines[0].endswith("scancel 12")


def test_whether_a_job_has_ended(squeue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (squeue / "answer").write_text("RUNNING\n")
    assert has_ended("1") is False
    (squeue / "answer").write_text("")
    assert has_ended("1") is True
    (squeue / "error").write_text("slurm_load_jobs error: Invalid job id specified\n")
    assert has_ended("1") is True
    (squeue / "error").write_text("slurm_load_jobs error: Unable to contact slurm controller\n")
    assert has_ended("1") is None
    monkeypatch.setenv("PATH", "")
    assert has_ended("1") is None


def test_a_host_without_sbatch_is_refused_with_a_sentence(squeue: Path) -> None:
    with pytest.raises(UserError, match="sbatch and scancel cannot be found on this host"):
        require_slurm()
