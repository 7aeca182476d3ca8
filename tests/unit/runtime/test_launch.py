import pytest

from effllm.runtime.launch import stage_environment
from effllm.stages import STAGES


def test_stages_keep_the_bytecode_of_what_they_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    assert all("PYTHONDONTWRITEBYTECODE" not in stage_environment(stage, threads=1) for stage in STAGES.values())
