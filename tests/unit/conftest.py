"""Real artifacts of the cut-down study, built once by the stages themselves."""

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from effllm.runtime.artifact import Artifact
from effllm.runtime.stage import run
from effllm.stages import STAGES
from effllm.stages.graph import Graph
from effllm.study import parse_study
from tests.conftest import cut_down


class Builder:
    """Builds nodes of a study on demand, parents first, below one results directory."""

    def __init__(self, study: dict[str, Any], root: Path):
        self.graph = Graph(parse_study(study, "test"), str(root / "results"))

    def build(self, stage: str, id: str) -> Artifact:
        """The artifact of a node."""
        inputs = {}
        for name, parent in self.graph.parents(stage, id).items():
            path = Path(parent) if isinstance(parent, str) else None
            if path and not path.exists():
                self.build(path.parts[-3], path.parts[-2])
            inputs[name] = [path] if path else [Path(file) for file in parent]
        program = importlib.import_module(STAGES[stage].module).build
        output = Path(self.graph.manifest(stage, id)).parent
        return run(STAGES[stage], program, spec=self.graph.spec(stage, id), inputs=inputs, output=output)

    def take_text(self, other: "Builder") -> "Builder":
        """Copy text, tokenizer and tokens from a builder of the same; this builder."""
        for stage, id in (("corpus", "python-docs"), ("tokenizer", "python-docs-2k"), ("tokens", "python-docs")):
            shutil.copytree(other.build(stage, id).directory, Path(self.graph.manifest(stage, id)).parent)
        return self


@pytest.fixture(scope="session")
def builder(tiny_text: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Builder:
    """A builder of the cut-down study; what it has built stays for the session."""
    return Builder(json.loads(json.dumps(cut_down(tiny_text))), tmp_path_factory.mktemp("study"))
