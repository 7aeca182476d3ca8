"""Rates that ship with the package: those of the published tables, for what they were measured on."""

import csv
from typing import Any

import pytest

from effllm.planning.plan import plan_of
from effllm.planning.reference import reference_rate
from effllm.stages.graph import Graph
from effllm.study import load_study
from tests.conftest import REPOSITORY

H100, A100 = "NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB"
STUDY = load_study(REPOSITORY / "config" / "single-gpu-shapes.yaml")
ROWS = {
    row["runs"]: row
    for number in (3, 4, 5, 6)
    for row in csv.DictReader((REPOSITORY / f"docs/results/h100/table{number}.csv").read_text().splitlines())
}


def config(id: str) -> dict[str, Any]:
    return STUDY.pretraining[id].plain()


@pytest.mark.parametrize("id", sorted(ROWS))
def test_a_measured_run_is_planned_by_its_own_rate(id: str) -> None:
    rate = reference_rate(config(id), float(ROWS[id]["parameters_total"]))
    assert rate is not None and (rate.run, rate.mfu) == (id, float(ROWS[id]["mfu"]))
    assert rate.power_w == float(ROWS[id]["AEC_W"]) and rate.device == H100


def test_what_was_not_measured_is_not_known() -> None:
    own = config("gqa-1.5b")
    assert reference_rate(own, 10e6) is None and reference_rate(own, 100e9) is None
    assert reference_rate(own | {"architecture": own["architecture"] | {"attention": "other"}}, 1.5e9) is None
    nearer = reference_rate(own | {"sequence_length": 3000}, 1.5e9)
    assert nearer is not None and nearer.run == "gqa-1.5b-2k"


def test_the_plan_takes_what_the_tables_took(tmp_path: Any) -> None:
    graph = Graph(STUDY, str(tmp_path))
    on_h100, on_a100 = (plan_of(graph, ["pretrain/mla-1.5b"], device=device) for device in (H100, A100))
    (node,) = (node for node in on_h100.nodes if node.stage == "pretrain")
    run = STUDY.pretraining["mla-1.5b"]
    assert node.wall_s.basis == "reference" and "mla-1.5b" in node.wall_s.source
    # Thirteen steps at the time of one that was published: seconds, not FLOPs.
    assert node.wall_s.value == pytest.approx(run.max_steps * float(ROWS["mla-1.5b"]["AL_s_per_iter"]), rel=0.02)
    assert node.energy_j is not None and node.energy_j.basis == "reference"
    assert node.energy_j.value == pytest.approx(node.wall_s.value * float(ROWS["mla-1.5b"]["AEC_W"]))
    (other,) = (node for node in on_a100.nodes if node.stage == "pretrain")
    assert other.wall_s.value == pytest.approx(node.wall_s.value * 989 / 312)
    assert other.energy_j is not None and other.energy_j.value is None
