"""What reruns over results that were really built, planned and run: edits, deletions, copies, tampering."""

import copy
import json
import shutil
from pathlib import Path

import pytest

from effllm.planning.verify import verify
from tests.workflow.conftest import Workdir
from tests.workflow.edits import FROM_TABLES, PRECISION_TABLES, TINY_CASES

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tiny_plans(finished: Workdir) -> dict[str, set[str]]:
    """What Snakemake would run after each edit of the cut-down study."""
    changes = [change for change, _ in TINY_CASES.values()]
    return dict(zip(TINY_CASES, finished.planned_after(changes), strict=True))


@pytest.mark.parametrize("case", TINY_CASES)
def test_an_edit_of_the_tiny_study_reruns_exactly(case: str, tiny_plans: dict[str, set[str]]) -> None:
    assert tiny_plans[case] == TINY_CASES[case][1]


def test_a_second_run_executes_nothing(finished: Workdir) -> None:
    result = finished.snakemake("all")
    assert "Nothing to be done" in result.stdout + result.stderr


def test_copied_results_are_used_and_refused_where_they_are_of_another_configuration(
    finished: Workdir, tmp_path: Path
) -> None:
    """Snakemake has no record of what was built elsewhere, and would put it into a table of today's study."""
    shutil.copytree(finished.path / "results", tmp_path / "results")
    copied = Workdir(tmp_path, copy.deepcopy(finished.study))
    copied.study["tables"]["table9"]["models"] = ["llama-1m"]
    copied.write()
    (tmp_path / "results" / "table9.csv").unlink()
    assert copied.built_by_running("results/table9.csv") == set()
    shutil.rmtree(tmp_path / ".snakemake")
    table = tmp_path / "results" / "table9.csv"
    table.unlink()
    TINY_CASES["one model's precision settings"][0].edit(copied.study)
    copied.write()
    result = copied.snakemake("results/table9.csv", check=False)
    assert result.returncode != 0
    sentence = "quantize/llama-1m.int4: built under another configuration, and Snakemake has no record of it"
    assert sentence in result.stdout + result.stderr
    assert "--forcerun quantize" in result.stdout + result.stderr
    assert not table.exists()
    built = copied.built_by_running("results/table9.csv", options=["--forcerun", "quantize"])
    assert "quantize/llama-1m.int4" in built and "quantize/llama-1m.bfloat16" not in built
    assert table.exists()


def test_a_deleted_table_is_rebuilt_and_nothing_before_it(finished: Workdir) -> None:
    (finished.path / "results" / "table9.csv").unlink()
    assert finished.planned() == {"table9.csv", "crossover.csv"} | FROM_TABLES - {"pairs.csv"}
    assert finished.built_by_running("results/table9.csv") == set()
    assert finished.planned() == set()


@pytest.mark.parametrize("deleted", [["table9"], ["table16", "validity"]])
def test_a_run_of_several_tables_is_resumed(finished: Workdir, deleted: list[str]) -> None:
    """Tables that stand are among the targets of the same run."""
    tables = [f"{path.stem}.csv" for path in (finished.path / "results").glob("*.csv")]
    for names in (["table9", "table16", "validity"], ["all"]):
        for table in deleted:
            (finished.path / "results" / f"{table}.csv").unlink()
        targets = [name if name == "all" else f"results/{name}.csv" for name in names]
        finished.snakemake(*targets)
        assert all((finished.path / "results" / table).exists() for table in tables)
        assert finished.planned() == set()


def test_swapped_artifacts_are_refused_by_the_next_run(finished: Workdir) -> None:
    first, second = (finished.path / "results/quantize" / name for name in ("llama-1m.bfloat16", "llama-1m.int4"))

    def swap() -> None:
        first.rename(first.with_name("aside"))
        second.rename(first)
        first.with_name("aside").rename(second)

    swap()
    (finished.path / "results/table9.csv").unlink()
    result = finished.snakemake("results/table9.csv", check=False)
    output = result.stdout + result.stderr
    assert result.returncode and "Traceback" not in output
    assert "holds the manifest of quantize/llama-1m" in output
    swap()
    finished.snakemake("results/table9.csv")


def test_a_tampered_payload_is_found_and_rebuilt_alone(finished: Workdir, monkeypatch: pytest.MonkeyPatch) -> None:
    """Retrained to the same bytes, so that nothing after it runs."""
    monkeypatch.chdir(finished.path)
    weights = Path("results/pretrain/llama-1m/model/model.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    damaged = {name: found for name, found in verify(Path("results")).items() if found}
    assert damaged == {"pretrain/llama-1m": [f"{weights} does not match the sha256 in its manifest"]}
    shutil.rmtree(weights.parents[1])
    assert finished.built_by_running("results/pretrain/llama-1m/manifest.json") == {"pretrain/llama-1m"}
    assert finished.planned() == set()


def test_a_rerun_that_changes_nothing_stops_where_nothing_changed(finished: Workdir) -> None:
    """Snakemake runs everything after a forced node; each of them sees its inputs unchanged and stands."""
    target = "results/profile/llama-1m.int4/manifest.json"
    assert finished.built_by_running(target, options=["--forcerun", "quantize"]) == set()
    assert finished.planned() <= PRECISION_TABLES


def test_what_is_planned_is_what_runs(finished: Workdir, tiny_plans: dict[str, set[str]]) -> None:
    """Run, not only plan, the edit of one model's setting; the other model's artifacts stay untouched."""
    case = "one model's precision settings"
    TINY_CASES[case][0].edit(finished.study)
    finished.write()
    assert finished.built_by_running("all") == tiny_plans[case] - PRECISION_TABLES
    quantization = json.loads((finished.path / "results/quantize/llama-1m.int4/quantization.json").read_text())
    assert quantization["precision"]["damping"] == 0.1
    assert finished.planned() == set()
