"""Tables 10 and 11 by the workflow, one row of each on latents of an autoencoder, and what a change reruns."""

import copy
from collections.abc import Callable
from typing import Any

import polars as pl
import pytest

from effllm.cli import main
from effllm.planning.nodes import nodes_behind, targets_of
from effllm.planning.state import states_of
from effllm.stages.graph import Graph
from effllm.study import parse_study
from tests.conftest import cut_down
from tests.unit.data.autoencoders import save_autoencoder
from tests.workflow.conftest import Workdir
from tests.workflow.edits import put

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
    "latents": {"digit-latents": {"images": "digits", "autoencoder": "small", "batch_size": 500}},
    "diffusion": {
        "dit": RUN,
        "sparse": {
            **RUN,
            "images": "digit-latents",
            "architecture": {
                **RUN["architecture"],
                "image_size": 4,
                "channels": 2,
                "attention": "nsa",
                "feed_forward": "moe",
            },
        },
    },
    "sampling": {
        "few": {
            "runs": ["dit", "sparse"],
            "sampler": {"kind": "ddim", "steps": 4, "guidance": 2.0},
            "images": 40,
            "seeds": [0, 1],
            "batch_size": 20,
            "idle_s": 0.1,
        }
    },
    "features": {"small": {"kind": "trained", "images": "digits", "steps": 20, "width": 8}},
    "fidelity": {"near": {"sampling": "few", "features": "small"}},
    "tables": {
        "table10": {
            "fidelity": "near",
            "rows": [
                {"model": "Small", "method": "MHA", "runs": ["dit"]},
                {"model": "Small, latents", "method": "NSA", "runs": ["sparse"]},
            ],
        },
        "table11": {
            "fidelity": "near",
            "rows": [
                {"model": "Small", "method": "Dense", "runs": ["dit"]},
                {"model": "Small, latents", "method": "MoE x8", "runs": ["sparse"]},
            ],
        },
    },
}
TARGETS = ("results/table10.csv", "results/table11.csv", "results/validity.csv")
PAPER_COLUMNS = ["model", "method", "FID", "AMU_GB", "AL_s_per_iter", "TT_tokens_per_param_s", "AEC_W"]


@pytest.fixture(scope="module")
def built(tiny_text: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Workdir:
    """A directory in which the workflow has built both tables, the run on latents from nothing.

    What else they need, and that run's own inputs, are built for the price of one start.
    """
    root = tmp_path_factory.mktemp("diffusion")
    save_autoencoder(root / "autoencoder")
    autoencoders = {"small": {"kind": "local", "path": str(root / "autoencoder")}}
    workdir = Workdir(root, {**cut_down(tiny_text), **SECTIONS, "autoencoders": autoencoders})
    workdir.snakemake(*(f"results/{node}/manifest.json" for node in ("latents/digit-latents", "fidelity/dit.near")))
    built = workdir.built_by_running(*TARGETS, fresh=True)
    assert built == {"diffuse/sparse", "sample/sparse.few", "fidelity/sparse.near"}
    return workdir


@pytest.mark.parametrize("table", ["table10", "table11"])
def test_every_cell_of_the_tables_has_a_figure_or_a_reason(built: Workdir, table: str) -> None:
    frame = pl.read_csv(built.path / "results" / f"{table}.csv")
    assert frame.columns[: len(PAPER_COLUMNS)] == PAPER_COLUMNS
    assert frame["tokens_per_image"].to_list() == [16, 4] and frame["global_batch"].unique().to_list() == [16]
    for row in frame.iter_rows(named=True):
        # Others on the machine may disturb a measurement; a cell that failed would be a fault of ours.
        assert row["status"] == "ok" or row["reason"].startswith("disturbed"), row
        for name in ("FID", "KID", "precision", "recall", "label_agreement", "held_out_loss"):
            assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"], name
        assert row["FID"] > row["FID_floor"] > 0 and row["held_out_loss"] < 1.5
        assert (row["fidelity_images"], row["fidelity_seeds"], row["images_seen"]) == (40, 2, 128)
        assert row["tokens_per_s"] == pytest.approx(row["images_per_s"] * row["tokens_per_image"], rel=1e-4)
        assert row["TT_tokens_per_param_s"] == pytest.approx(row["tokens_per_s"] / row["parameters_total"], rel=1e-4)
        assert row["AMU_GB"] > 0.1 and row["AL_s_per_iter"] > 0
        empty = {name for name, value in row.items() if value is None} - {"reason", "not_measured", "warnings"}
        said = {name for part in row["not_measured"].split(" | ") for name in part.split(":")[0].split(", ")}
        assert empty == said and "GPU_hours" in said and "trained on a CPU" in row["not_measured"]
    if table == "table11":
        assert frame["experts"].to_list() == [None, "8 of 88 (SwiGLU), top 2"]
        assert frame["parameters_active"][1] < frame["parameters_total"][1]


def test_no_rule_finds_more_than_others_on_the_machine(built: Workdir) -> None:
    findings = pl.read_csv(built.path / "results" / "validity.csv", infer_schema=False)
    errors = findings.filter(pl.col("severity") == "error", pl.col("rule") != "disturbed")
    assert errors.rows() == []


def test_a_second_run_executes_nothing_and_a_change_what_follows_from_it(
    built: Workdir, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = built.snakemake(*TARGETS)
    assert "Nothing to be done" in output.stdout + output.stderr
    monkeypatch.chdir(built.path)
    assert planned(built.study) == set()
    images, trained, features = "images/digits", "diffuse/dit", "features/small"
    sampled, compared = "sample/dit.few", "fidelity/dit.near"
    latents, learned = "latents/digit-latents", "diffuse/sparse"
    others = {"sample/sparse.few", "fidelity/sparse.near"}
    tables = {"table10.csv", "table11.csv"}
    assert planned(built.study, put("fidelity/near/neighbours", 5)) == {compared, "fidelity/sparse.near"} | tables
    edit = put("features/small/steps", 21)
    assert planned(built.study, edit) == {features, compared, "fidelity/sparse.near"} | tables
    edit = put("sampling/few/sampler/steps", 5)
    assert planned(built.study, edit) == {sampled, compared} | others | tables
    assert planned(built.study, put("diffusion/dit/seed", 1)) == {trained, sampled, compared} | tables
    edit = put("latents/digit-latents/posterior", "mean")
    assert planned(built.study, edit) == {latents, learned} | others | tables
    assert planned(built.study, put("tables/table11/rows", lambda rows: rows[::-1])) == {"table11.csv"}
    everything = {images, trained, features, sampled, compared, latents, learned} | others | tables
    assert planned(built.study, put("images/digits/held_out_fraction", 0.2)) == everything
    assert (built.path / "results" / "sample" / "sparse.few" / "records" / "grid.png").is_file()
    with pytest.raises(SystemExit) as end:
        main(["verify", "results"])
    assert not end.value.code


def planned(study: dict[str, Any], edit: Callable[[dict[str, Any]], object] = lambda study: None) -> set[str]:
    """What would run for both tables after an edit of the study."""
    study = copy.deepcopy(study)
    edit(study)
    graph = Graph(parse_study(study, "test"))
    wanted = targets_of(graph, ["table10", "table11"])
    states = states_of(graph, nodes_behind(graph, wanted), wanted)
    return {name for name, state in states.items() if not state.up_to_date}
