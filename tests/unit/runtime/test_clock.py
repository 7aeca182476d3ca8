"""An input from the future ends a job in one sentence before its work, as Snakemake would end it after."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from effllm.assembly import assemble
from effllm.assembly.assemble import write_table
from effllm.errors import EXIT_USER_ERROR, UserError
from effllm.runtime import clock, launch
from effllm.runtime.clock import await_inputs
from effllm.stages import STAGES


@pytest.fixture
def dated(tmp_path: Path) -> Callable[..., str]:
    """Make an input so many seconds ahead of the clock."""

    def make(ahead_s: float, name: str = "manifest.json") -> str:
        path = tmp_path / name
        path.touch()
        os.utime(path, (0, time.time() + ahead_s))
        return str(path)

    return make


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that were waited."""
    found: list[float] = []
    monkeypatch.setattr(clock.time, "sleep", found.append)
    return found


def test_inputs_of_the_past_are_not_waited_for(tmp_path: Path, dated: Callable[..., str], waits: list[float]) -> None:
    await_inputs([dated(-3600.0), str(tmp_path / "missing")], tmp_path)
    await_inputs([], tmp_path)
    assert waits == []
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"], "nothing is left behind"


def test_a_clock_that_is_little_behind_is_waited_for(
    tmp_path: Path, dated: Callable[..., str], waits: list[float]
) -> None:
    await_inputs([dated(50.0)], tmp_path)
    assert len(waits) == 1 and 0 < waits[0] < 51.0


def test_the_file_the_times_and_the_remedy_are_named(
    tmp_path: Path, dated: Callable[..., str], waits: list[float]
) -> None:
    path = dated(7200.0)
    text = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(Path(path).stat().st_mtime))
    with pytest.raises(UserError) as caught:
        await_inputs([dated(3600.0, "other"), path], tmp_path)
    assert str(caught.value).startswith(f"{path} is dated {text}, but the clock says {time.strftime('%Y-')}")
    assert "(and 1 more inputs are ahead of the clock)" in str(caught.value)
    assert str(caught.value).endswith("set the clock right, or touch the files.")
    assert "\n" not in str(caught.value) and waits == []


def test_the_time_of_a_link_is_its_own(tmp_path: Path, dated: Callable[..., str], waits: list[float]) -> None:
    """As Snakemake compares it: a file of the future behind an old link is no hindrance."""
    link = tmp_path / "link"
    link.symlink_to(dated(7200.0))
    await_inputs([str(link)], tmp_path)


def test_no_stage_starts(
    tmp_path: Path, dated: Callable[..., str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def start(*_: object, **__: object) -> int:
        raise AssertionError("the work has begun")

    monkeypatch.setattr(launch, "run_logged", start)
    manifest = str(tmp_path / "results" / "tokens" / "x" / "manifest.json")
    path, log = dated(7200.0), tmp_path / "logs" / "tokens.log"
    with pytest.raises(SystemExit) as end:
        launch.run_stage(STAGES["tokens"], spec={}, inputs={"corpus": path}, manifest=manifest, log=str(log), threads=1)
    assert end.value.code == EXIT_USER_ERROR
    assert capsys.readouterr().err.startswith(f"tokens x: {path} is dated ")
    assert log.read_text().startswith(f"error: {path} is dated ")


def test_no_table_is_assembled(
    tmp_path: Path, dated: Callable[..., str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(assemble.ASSEMBLERS, "table9", lambda *_: pytest.fail("the work has begun"))
    path, log = dated(7200.0), tmp_path / "log"
    with pytest.raises(SystemExit) as end:
        write_table("table9", spec={}, inputs={"profile": path}, output=str(tmp_path / "table9.csv"), log=str(log))
    assert end.value.code == EXIT_USER_ERROR
    assert capsys.readouterr().err.startswith(f"table9: {path} is dated ")
    assert log.read_text().startswith(f"error: {path} is dated ")
