"""Images, a diffusion transformer, its samples and their fidelity by the workflow, and what a change reruns."""

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

NODE = "results/fidelity/dit.near/manifest.json"
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


SECTIONS = {
    "images": {"digits": {"source": {"kind": "digits"}, "size": 8, "channels": 1, "held_out_fraction": 0.1}},
    "diffusion": {"dit": RUN},
    "sampling": {
        "few": {
            "runs": ["dit"],
            "sampler": {"kind": "ddim", "steps": 4, "guidance": 2.0, "clip": True},
            "images": 40,
            "batch_size": 20,
            "idle_s": 0.1,
        }
    },
    "features": {"small": {"kind": "trained", "images": "digits", "steps": 20, "width": 8}},
    "fidelity": {"near": {"sampling": "few", "features": "small"}},
}


def test_images_are_sampled_and_compared_once_and_again_where_something_changed(
    micro: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workdir = Workdir(tmp_path, {**micro, **SECTIONS})
    workdir.snakemake(NODE)
    quality = json.loads((tmp_path / "results" / "diffuse" / "dit" / "training.json").read_text())
    assert quality["held_out_loss"] < 1 and quality["images_seen"] == 128
    fidelity = json.loads((tmp_path / "results" / "fidelity" / "dit.near" / "fidelity.json").read_text())
    assert fidelity["images"] == 40 and fidelity["frechet_distance"] > fidelity["floor"]["frechet_distance"] > 0
    assert (tmp_path / "results" / "sample" / "dit.few" / "records" / "grid.png").is_file()
    monkeypatch.chdir(tmp_path)
    images, trained, features = "images/digits", "diffuse/dit", "features/small"
    sampled, compared = "sample/dit.few", "fidelity/dit.near"
    assert planned(workdir.study) == set()
    assert planned(workdir.study, put("fidelity/near/neighbours", 5)) == {compared}
    assert planned(workdir.study, put("features/small/steps", 21)) == {features, compared}
    assert planned(workdir.study, put("sampling/few/sampler/steps", 5)) == {sampled, compared}
    assert planned(workdir.study, put("diffusion/dit/seed", 1)) == {trained, sampled, compared}
    everything = {images, trained, features, sampled, compared}
    assert planned(workdir.study, put("images/digits/held_out_fraction", 0.2)) == everything
    with pytest.raises(SystemExit) as end:
        main(["verify", "results"])
    assert not end.value.code


def planned(study: dict[str, Any], edit: Callable[[dict[str, Any]], object] = lambda study: None) -> set[str]:
    """What would run for the fidelity after an edit of the study."""
    study = copy.deepcopy(study)
    edit(study)
    graph, wanted = Graph(parse_study(study, "test")), ["fidelity/dit.near"]
    states = states_of(graph, nodes_behind(graph, wanted), wanted)
    return {name for name, state in states.items() if not state.up_to_date}
