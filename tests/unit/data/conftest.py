"""Stages of the data package, run as the workflow runs them."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from effllm import stage
from effllm.artifact import Artifact
from effllm.data import corpus, packing, tokenizer
from effllm.data.instructions import prepare
from effllm.stages import STAGES
from tests.hub.fixtures import hub, waits  # noqa: F401

_BUILD = {
    "corpus": corpus.build,
    "instructions": prepare.build,
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
        spec = {"stage": name, "version": STAGES[name].version, "config": config}
        return stage.run(name, _BUILD[name], spec=spec, inputs=paths, output=tmp_path / "results" / name / id)

    return run


@pytest.fixture
def sample_files(run_stage: RunStage) -> Callable[..., Artifact]:
    """Sample files into a corpus: `sample_files(paths, id=..., **config)`."""

    def sample(paths: Iterable[Path], id: str = "sample", **config: Any) -> Artifact:
        source = {"kind": "files", "paths": ["unused.jsonl"]}
        return run_stage("corpus", id, {"source": source, "held_out_fraction": 0.2} | config, files=paths)

    return sample
