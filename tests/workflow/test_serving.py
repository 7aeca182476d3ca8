"""A model with random weights is served by the workflow, and what a change measures again."""

import copy
from pathlib import Path
from typing import Any

import pytest

from effllm.cli import main
from effllm.planning.nodes import nodes_behind
from effllm.planning.state import states_of
from effllm.results.serving import Serving
from effllm.stages.graph import Graph
from effllm.study import parse_study
from tests.workflow.conftest import Workdir
from tests.workflow.edits import Study, put

NODE = "serve/small.bfloat16.short"
MODEL = {
    "source": {
        "kind": "random",
        "architecture": {
            "model_type": "llama",
            "vocab_size": 300,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 64,
        },
    }
}
SERVING = {
    "engine": {"kind": "transformers", "num_blocks": 64, "page_size": 8, "max_batch_tokens": 64},
    "load": {
        "arrivals": {"kind": "poisson"},
        "prompt_tokens": {"kind": "fixed", "tokens": 6},
        "output_tokens": {"kind": "fixed", "tokens": 4},
    },
    "saturation": {"concurrency": 2, "maximum_concurrency": 2},
    "fractions": [0.9],
    "requests": 4,
    "warmup_requests": 1,
    "idle_s": 0.1,
}


def test_a_model_is_served_once_and_again_where_something_changed(
    micro: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = {key: micro[key] for key in ("name", "inference", "evaluation")}
    study |= {"models": {"small": MODEL}, "precisions": {"bfloat16": micro["precisions"]["bfloat16"]}, "tables": {}}
    study["serving"] = {"short": SERVING}
    study["evaluation"] = {"batch_size": 4}
    workdir = Workdir(tmp_path, study)
    workdir.snakemake(f"results/{NODE}/manifest.json", fresh=True)
    served = Serving.read(tmp_path / "results" / NODE)
    assert list(served.loads) == ["0.9", "saturated"]
    assert all(load.figures and load.figures.completed == load.figures.requests for load in served.loads.values())
    monkeypatch.chdir(tmp_path)
    assert _planned(study) == set()
    assert _planned(study, put("models/small/label", "Small")) == set()
    assert _planned(study, put("serving/short/fractions", [0.5, 0.9])) == {NODE}
    assert _planned(study, put("serving/short/engine/num_blocks", 32)) == {NODE}
    assert _planned(study, put("serving/other", SERVING)) == set()
    with pytest.raises(SystemExit) as end:
        main(["verify", "results"])
    assert not end.value.code


def _planned(study: Study, edit: Any = lambda study: None) -> set[str]:
    """What would run for the node after an edit of the study."""
    study = copy.deepcopy(study)
    edit(study)
    graph = Graph(parse_study(study, "test"))
    states = states_of(graph, nodes_behind(graph, [NODE]), [NODE])
    return {name for name, state in states.items() if not state.up_to_date}
