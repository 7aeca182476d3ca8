"""The studies of one GPU and of one node: short, with the text that their runs read, and memory that a GPU has."""

import re
from pathlib import Path

import pytest

from effllm.models.costs import parameter_count
from effllm.models.costs.shapes import shape_of
from effllm.planning.plan import plan_of
from effllm.stages.graph import Graph
from effllm.study import Study, load_study
from tests.conftest import REPOSITORY

CONFIG = REPOSITORY / "config"
DAY = load_study(CONFIG / "one-gpu.yaml")


@pytest.fixture(params=["one-gpu", "node"])
def study(request: pytest.FixtureRequest) -> Study:
    return DAY if request.param == "one-gpu" else load_study(CONFIG / f"{request.param}.yaml")


def _read(study: Study, id: str) -> int:
    run = study.pretraining[id]
    return run.max_steps * run.global_batch_size * run.sequence_length


def test_they_are_short() -> None:
    assert all(len((CONFIG / name).read_text().splitlines()) <= 100 for name in ("one-gpu.yaml", "node.yaml"))


def test_runs_read_their_text_once(study: Study) -> None:
    most = study.corpora["fineweb-edu"].maximum_tokens
    assert most is not None
    used = {run for table in (3, 4, 5, 6) for row in getattr(study.tables, f"table{table}").rows for run in row.runs}
    assert max(_read(study, id) for id in used) * 1.05 < most


def test_runs_have_the_stated_tokens_per_parameter_and_rates(study: Study) -> None:
    (stated,) = re.findall(r"# Tokens for each parameter of GQA: (.+)\.", (CONFIG / f"{study.name}.yaml").read_text())
    for count, size in re.findall(r"([\d.]+) at ([\d.]+[MB])", stated):
        id = f"gqa-{size.lower()}"
        parameters = parameter_count(shape_of(study.pretraining[id].architecture, 32768)).total
        assert _read(study, id) / parameters == pytest.approx(float(count), rel=0.03)
    for run in study.pretraining.values():
        # The stated rule of the peak rate.
        assert abs(run.optimizer.learning_rate * run.architecture.hidden_size - 0.768) < 1e-9


def test_its_trainings_fit_the_device(tmp_path: Path) -> None:
    tables = ["table3", "table4", "table5", "table6"]
    plan = plan_of(Graph(DAY, str(tmp_path)), tables, device="NVIDIA H100 80GB HBM3")
    assert not plan.wont_fit and not plan.risks
    assert all(node.memory_b and node.memory_b.value for node in plan.nodes if node.stage == "pretrain")
