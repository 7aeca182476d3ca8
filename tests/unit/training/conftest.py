"""Pretraining runs of the cut-down study as a user starts them, each a program of its own; fine-tuning methods."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

from effllm.runtime.artifact import MANIFEST, Artifact
from effllm.training.methods import AnyMethod
from tests.programs import environment, run_program
from tests.unit.training.small_models import VOCABULARY


class PretrainCommand:
    """`python -m effllm.training.pretrain` for one changed run of the study."""

    def __init__(self, builder: Any, root: Path, name: str, changes: dict[str, Any]):
        spec = builder.graph.spec("pretrain", "llama-1m")
        spec["config"] = _merged(spec["config"], changes)
        spec_file = root / f"{name}.json"
        spec_file.write_text(json.dumps(spec))
        self.output = root / "results" / "pretrain" / name
        self.work = root / "results" / ".scratch" / "pretrain" / name / "work"
        self.argv = [sys.executable, "-m", "effllm.training.pretrain", "--spec", str(spec_file)]
        self.argv += ["--output", str(self.output)]
        for stage, id in (("tokens", "python-docs"), ("tokenizer", "python-docs-2k")):
            self.argv += ["--input", f"{stage}={builder.build(stage, id).directory / MANIFEST}"]

    def run(self) -> Artifact:
        """Run to the end; the artifact."""
        run_program(self.argv)
        return Artifact.open(self.output / MANIFEST)

    def record(self, name: str) -> dict[str, Any]:
        """A record of the finished run."""
        return json.loads((self.output / "records" / name).read_text())

    def losses(self) -> list[float]:
        """The loss curve's values."""
        return [point["loss"] for point in self.record("loss_curve.json")["curve"]]

    def held_out(self) -> list[dict[str, float]]:
        """The points of the held-out curve."""
        return self.record("loss_curve.json")["held_out"]


def _merged(config: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Changes one level deep: a section is updated, unless it becomes another architecture."""
    result = dict(config)
    for key, value in changes.items():
        is_update = isinstance(value, dict) and key != "architecture"
        result[key] = {**config.get(key, {}), **value} if is_update else value
    return result


@pytest.fixture
def pretrain(builder: Any, tmp_path: Path) -> Callable[..., PretrainCommand]:
    """Prepare a run under a name: `pretrain("whole", max_steps=40)`."""

    def prepare(name: str, **changes: Any) -> PretrainCommand:
        return PretrainCommand(builder, tmp_path, name, changes)

    return prepare


@pytest.fixture
def forked_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks of a stage that runs in this process are forks too, and import nothing."""
    for name, value in environment().items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def method() -> Callable[..., Any]:
    """Settings of a method: `method("lora", rank=4)`; adapters have rank 4 and alpha 12 unless given."""

    def make(kind: str, **settings: Any) -> Any:
        adapter = {} if kind in ("freeze", "full") else {"rank": 4} if kind == "glora" else {"rank": 4, "alpha": 12}
        return TypeAdapter(AnyMethod).validate_python({"kind": kind} | adapter | settings)

    return make


@pytest.fixture
def tokens() -> torch.Tensor:
    """[2, 17] tokens without padding."""
    return torch.randint(1, VOCABULARY, (2, 17), generator=torch.Generator().manual_seed(1))
