"""The study of one GPU: pinned as the paper's is, with the text that its runs read, and memory that its device has."""

import re
from pathlib import Path

from effllm.models.costs import parameter_count
from effllm.models.costs.shapes import shape_of
from effllm.planning.plan import plan_of
from effllm.stages.graph import Graph
from effllm.study import load_study
from tests.conftest import REPOSITORY

STUDY = load_study(REPOSITORY / "config" / "one-gpu.yaml")
PINS = set(re.findall(r"\b[0-9a-f]{40}\b", (REPOSITORY / "config" / "paper.yaml").read_text()))


def test_every_revision_of_its_own_is_one_that_the_paper_s_study_has() -> None:
    text = (REPOSITORY / "config" / "one-gpu.yaml").read_text()
    assert set(re.findall(r"\b[0-9a-f]{40}\b", text)) <= PINS and len(text.splitlines()) <= 100


def test_runs_read_their_text_once_at_the_stated_tokens_per_parameter() -> None:
    read = {id: run.max_steps * run.global_batch_size * run.sequence_length for id, run in STUDY.pretraining.items()}
    most = STUDY.corpora["fineweb-edu"].maximum_tokens
    assert most is not None and max(read.values()) * 1.05 < most
    for id in ("gqa-50m", "gqa-125m"):
        parameters = parameter_count(shape_of(STUDY.pretraining[id].architecture, 32768)).total
        assert 19.5 < read[id] / parameters < 20.5
    for run in STUDY.pretraining.values():
        # The stated rule of the peak rate.
        assert abs(run.optimizer.learning_rate * run.architecture.hidden_size - 0.768) < 1e-9


def test_its_trainings_fit_the_device(tmp_path: Path) -> None:
    tables = ["table3", "table4", "table5", "table6"]
    plan = plan_of(Graph(STUDY, str(tmp_path)), tables, device="NVIDIA H100 80GB HBM3")
    assert not plan.wont_fit and not plan.risks
    assert all(node.memory_b and node.memory_b.value for node in plan.nodes if node.stage == "pretrain")
