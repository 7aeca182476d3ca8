from pathlib import Path

import pytest

from effllm.runtime import launch, stage
from effllm.runtime.launch import stage_environment
from effllm.stages import STAGES


def test_stages_keep_the_bytecode_of_what_they_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    assert all("PYTHONDONTWRITEBYTECODE" not in stage_environment(stage, threads=1) for stage in STAGES.values())


def test_more_files_than_a_command_line_holds_reach_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [f"/images/{'x' * 60} = {number}.png" for number in range(30_000)]
    inputs = {"files": files, "images": "results/images/x/manifest.json"}
    spec = {"stage": "images", "version": 1, "config": {}}
    given: list[str] = []
    monkeypatch.setattr(launch, "run_logged", lambda argv, **_: given.extend(argv) or 0)
    manifest = tmp_path / "results" / "images" / "birds" / "manifest.json"
    launch.run_stage(STAGES["images"], spec=spec, inputs=inputs, manifest=str(manifest), log="log", threads=1)
    # What Linux gives a command by default is 2 MiB, and more than these files take.
    assert sum(map(len, given)) < 1_000 + 4 * len(str(tmp_path))
    understood = stage._parse("effllm.data.images.prepare", given[4:])
    assert {name: list(map(str, paths)) for name, paths in understood["inputs"].items()} == {
        "files": files,
        "images": [inputs["images"]],
    }
    assert understood["spec"] == spec and understood["output"] == manifest.parent
