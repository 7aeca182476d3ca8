"""What reruns after an edit of the paper's study is exactly what the edit concerns: no node too many, none missed.

Snakemake plans the table of cases over stand-ins for all results; what is planned is what runs, as the tests in
test_reruns.py show with real results.
"""

import os
import shutil
import time
from itertools import product
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.workflow.conftest import Change, Workdir, pending, run_many
from tests.workflow.edits import (
    BENCHMARKS,
    FROM_TABLES,
    MODELS,
    PAPER_CASES,
    PRECISION_TABLES,
    PRECISIONS,
    put,
    variants,
    with_pairs,
)


@pytest.fixture(scope="module")
def paper_plans(paper: Workdir) -> dict[str, set[str]]:
    """What Snakemake would run after each edit of the paper's study."""
    changes = [change for change, _ in PAPER_CASES.values()]
    return dict(zip(PAPER_CASES, paper.planned_after(changes), strict=True))


@pytest.mark.parametrize("case", PAPER_CASES)
def test_an_edit_of_the_papers_study_reruns_exactly(case: str, paper_plans: dict[str, set[str]]) -> None:
    assert paper_plans[case] == PAPER_CASES[case][1]


@pytest.mark.parametrize("case", [name for name, (change, _) in PAPER_CASES.items() if not change.options])
def test_the_plan_names_the_nodes_that_snakemake_runs(
    case: str, paper: Workdir, paper_plans: dict[str, set[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`effllm plan` and `status` decide without Snakemake what stands."""
    monkeypatch.chdir(paper.path)
    planned = paper.planned_without_snakemake(PAPER_CASES[case][0])
    assert planned == paper_plans[case]


def _checkout(directory: Path) -> Path:
    """A copy of the workflow's sources, every file newer than any result."""
    for name in ("effllm", "rules", "workflow_scripts", "profiles", "config"):
        shutil.copytree(REPOSITORY / name, directory / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "Snakefile", directory / "Snakefile")
    for path in directory.rglob("*"):
        os.utime(path)
    return directory


def _planned_by(checkout: Path, workdir: Workdir) -> set[str]:
    line = ["--directory", str(workdir.path), *workdir.arguments("all", options=["--summary"])]
    return pending(run_many([line], checkout)[0])


def test_a_checkout_and_a_change_of_code_rerun_nothing(paper: Workdir, tmp_path: Path) -> None:
    checkout = _checkout(tmp_path)
    for path in [*checkout.glob("effllm/quantization/*.py"), *checkout.glob("rules/*.smk")]:
        path.write_text(path.read_text() + "\n# A comment.\n")
    assert _planned_by(checkout, paper) == set()


def test_a_raised_stage_version_reruns_the_stage_and_what_follows(paper: Workdir, tmp_path: Path) -> None:
    checkout = _checkout(tmp_path)
    stage = checkout / "effllm" / "stages" / "profile.py"
    raised = stage.read_text().replace("version: ClassVar[int] = ", "version: ClassVar[int] = 100 + ")
    assert raised != stage.read_text()
    stage.write_text(raised)
    profiles = {f"profile/{model}.{precision}" for model, precision in product(MODELS, PRECISIONS)}
    assert _planned_by(checkout, paper) == profiles | with_pairs({"table9.csv", "validity.csv"}) | FROM_TABLES


@pytest.mark.parametrize(
    ("name", "follows"),
    [("table9.csv", {"ranks.csv", "comparison.csv", "claims.csv"}), ("claims.yaml", {"claims.csv"})],
)
def test_a_published_value_or_claim_assembles_again_what_is_made_of_it(
    paper: Workdir, tmp_path: Path, name: str, follows: set[str]
) -> None:
    checkout = _checkout(tmp_path)
    with (checkout / "config" / "paper" / name).open("a") as file:
        file.write("\n")
    assert _planned_by(checkout, paper) == follows


def test_file_times_rerun_nothing(paper: Workdir) -> None:
    manifests = sorted((paper.path / "results").glob("*/*/manifest.json"))
    for age, path in enumerate(reversed(manifests)):
        os.utime(path, (time.time() + age, time.time() + age))
    assert paper.planned() == set()


def test_a_deleted_artifact_is_built_again_only_for_what_runs(paper: Workdir, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that finished work can be deleted to save space; Snakemake and the plan agree."""
    monkeypatch.chdir(paper.path)
    model, scored = (Path(f"results/{node}/manifest.json") for node in ("model/phi-4", "evaluate/phi-4.int4.musr"))
    texts = {path: path.read_text() for path in (model, scored)}
    manifest = str(scored)
    try:
        model.unlink()
        scored.unlink()
        change = Change(put("models/phi-4/precisions", {"int4": {"damping": 0.1}}))
        unchanged, edited = paper.planned_after([Change(), change])
        assert unchanged == set() == paper.planned_without_snakemake(Change())
        follows = {"model/phi-4"} | variants(["phi-4"], PRECISIONS, BENCHMARKS) | PRECISION_TABLES
        assert edited == follows
        assert paper.planned_without_snakemake(change) == follows
        assert paper.planned(manifest) == {"evaluate/phi-4.int4.musr"}
    finally:
        for path, text in texts.items():
            path.write_text(text)
