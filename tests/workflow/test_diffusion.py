"""Images and a diffusion transformer by the workflow, and what a change of either reruns."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from effllm.cli import main
from effllm.planning.nodes import nodes_behind
from effllm.planning.state import states_of
from effllm.stages.graph import Graph
from effllm.study import parse_study
from tests.workflow.conftest import Workdir
from tests.workflow.edits import put

NODE = "results/diffuse/dit/manifest.json"
RUN = {
    "images": "digits",
    "architecture": {
        "model_type": "dit",
        "image_size": 8,
        "channels": 1,
        "patch_size": 2,
        "classes": 10,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
    },
    "objective": {"kind": "ddpm"},
    "global_batch_size": 16,
    "micro_batch_size": 16,
    "max_steps": 8,
    "optimizer": {"learning_rate": 1.0e-2, "minimum_learning_rate": 0.0, "warmup_steps": 2, "weight_decay": 0.0},
    "dtype": "float32",
    "checkpoint_every_steps": None,
    "log_every_steps": 4,
    "held_out_draws": 1,
}


def test_a_diffusion_transformer_is_trained_once_and_again_where_something_changed(
    micro: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = {"digits": {"source": {"kind": "digits"}, "size": 8, "channels": 1, "held_out_fraction": 0.1}}
    workdir = Workdir(tmp_path, {**micro, "images": sources, "diffusion": {"dit": RUN}})
    workdir.snakemake(NODE)
    quality = json.loads((tmp_path / "results" / "diffuse" / "dit" / "training.json").read_text())
    assert quality["held_out_loss"] < 1 and quality["images_seen"] == 128
    monkeypatch.chdir(tmp_path)
    images, trained = "images/digits", "diffuse/dit"
    assert planned(workdir.study) == set()
    assert planned(workdir.study, put("diffusion/dit/seed", 1)) == {trained}
    assert planned(workdir.study, put("images/digits/held_out_fraction", 0.2)) == {images, trained}
    with pytest.raises(SystemExit) as end:
        main(["verify", "results"])
    assert not end.value.code


def planned(study: dict[str, Any], edit: Callable[[dict[str, Any]], object] = lambda study: None) -> set[str]:
    """What would run for the model after an edit of the study."""
    study = copy.deepcopy(study)
    edit(study)
    graph, wanted = Graph(parse_study(study, "test")), ["diffuse/dit"]
    states = states_of(graph, nodes_behind(graph, wanted), wanted)
    return {name for name, state in states.items() if not state.up_to_date}
