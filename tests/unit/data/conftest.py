"""Stages of the data package, run as the workflow runs them."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from effllm.data import corpus, packing, tokenizer
from effllm.data.instructions import prepare
from effllm.data.order import build as order
from effllm.runtime import stage
from effllm.runtime.artifact import Artifact
from effllm.stages import STAGES
from tests.conftest import spec_of
from tests.hub.fixtures import hub, waits  # noqa: F401

_BUILD = {
    "corpus": corpus.build,
    "instructions": prepare.build,
    "order": order.build,
    "tokenizer": tokenizer.build,
    "tokens": packing.build,
}
RunStage = Callable[..., Artifact]


@pytest.fixture
def run_stage(tmp_path: Path) -> RunStage:
    """Build a stage's artifact from its config and inputs (lists of files, or artifacts) below `tmp_path`."""

    def run(name: str, id: str, config: dict[str, Any], **inputs: Artifact | Iterable[Path]) -> Artifact:
        paths = {
            key: [value.directory / "manifest.json"] if isinstance(value, Artifact) else list(value)
            for key, value in inputs.items()
        }
        spec = spec_of(name, config)
        return stage.run(STAGES[name], _BUILD[name], spec=spec, inputs=paths, output=tmp_path / "results" / name / id)

    return run


@pytest.fixture
def sample_files(run_stage: RunStage) -> Callable[..., Artifact]:
    """Sample files into a corpus: `sample_files(paths, id=..., **config)`."""

    def sample(paths: Iterable[Path], id: str = "sample", **config: Any) -> Artifact:
        source = {"kind": "files", "paths": ["unused.jsonl"]}
        return run_stage("corpus", id, {"source": source, "held_out_fraction": 0.2} | config, files=paths)

    return sample


@pytest.fixture
def prepare(run_stage: RunStage) -> Callable[..., Artifact]:
    """Prepare instruction data: `prepare(source, files=[...], **config)`."""

    def run(source: dict[str, Any], id: str = "sample", files: list[Path] | None = None, **config: Any) -> Artifact:
        inputs = {} if files is None else {"files": files}
        return run_stage("instructions", id, {"source": source, "held_out_fraction": 0.2} | config, **inputs)

    return run


@pytest.fixture
def prepare_files(prepare: Callable[..., Artifact]) -> Callable[..., Artifact]:
    """Prepare local files: `prepare_files(paths, columns, ...)`."""

    def run(paths: list[Path], columns: dict[str, Any], **config: Any) -> Artifact:
        return prepare({"kind": "files", "paths": ["unused.jsonl"], "columns": columns}, files=paths, **config)

    return run
