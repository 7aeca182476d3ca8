"""What decides the results of the shipped studies: kept, so that no change of code reruns anybody's artifacts.

A stage whose results really change gets a higher version; then `python -m tests.unit.study.test_golden_specs` writes
the digests again.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from effllm.stages import STAGES
from effllm.stages.graph import Graph
from effllm.study import load_study

_GOLDEN = Path(__file__).with_name("golden_specs.json")
_STUDIES = ("config/tiny.yaml", "config/paper.yaml", "config/single-gpu-shapes.yaml")


def _digest(content: Any) -> str:
    # Order is part of it: Snakemake compares parameters as they are.
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _digests(study: str) -> dict[str, str]:
    """Of specs and parents by stage, and of rows and inputs by table."""
    graph = Graph(load_study(Path(study)))
    found = {}
    for stage in STAGES:
        ids = sorted(graph.ids(stage))
        found[f"{stage} specs"] = _digest({id: graph.spec(stage, id) for id in ids})
        found[f"{stage} parents"] = _digest({id: graph.parents(stage, id) for id in ids})
    for table in graph.tables():
        found[f"{table} spec"] = _digest(graph.table_spec(table))
        found[f"{table} parents"] = _digest(graph.table_parents(table))
    return found


@pytest.mark.parametrize("study", _STUDIES)
def test_specs_and_parents_are_as_they_were(study: str) -> None:
    golden = json.loads(_GOLDEN.read_text())[study]
    found = _digests(study)
    assert {name for name in golden.keys() | found.keys() if golden.get(name) != found.get(name)} == set()


if __name__ == "__main__":
    _GOLDEN.write_text(json.dumps({study: _digests(study) for study in _STUDIES}, indent=1) + "\n")
