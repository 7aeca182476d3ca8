"""Table 9 and a fine-tuned model on the cluster: where jobs land, what they get, and that results are local ones."""

import copy
import json
import subprocess
from collections.abc import Iterator
from typing import Any

import polars as pl
import pytest

from tests.conftest import REPOSITORY, cut_down
from tests.slurm.conftest import Cluster, Record, Workflow

pytestmark = pytest.mark.slurm

TABLE = "results/table9.csv"
TUNED = "finetune/llama-1m.describe.lora"
TARGETS = (TABLE, f"results/{TUNED}/manifest.json")
# What a run measures; everything else in the table follows from weights and data.
MEASURED = (
    "AL_", "IT_", "AMU", "AEC", "latency_ms", "first_token_ms", "token_ms", "prefill_", "decode_", "util_", "energy_",
    "power_", "memory_", "windows_s", "warnings", "batch_", "not_measured", "status", "reason",
)  # fmt: skip


def one_model(tiny: dict[str, Any]) -> dict[str, Any]:
    """The cut-down study with one model: eleven nodes on the cluster, its fine-tuning included."""
    study = copy.deepcopy(cut_down(tiny))
    for section in ("pretraining", "models"):
        study[section] = {"llama-1m": study[section]["llama-1m"]}
    for table in ("table9", "table16"):
        study["tables"][table]["models"] = ["llama-1m"]
    study["tables"] = {table: study["tables"][table] for table in ("table9", "table16")}
    return study


@pytest.fixture(scope="module")
def local(undisturbed: Workflow, tiny_text: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Workflow:
    """The same, built on this machine."""
    local = Workflow(tmp_path_factory.mktemp("local"), one_model(tiny_text))
    local.copy_parents(undisturbed)
    local.local(*TARGETS)
    return local


@pytest.fixture(scope="module")
def workflow(
    cluster: Cluster, tiny_text: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Workflow]:
    """The study's Table 9 and a model of Table 7, built on the cluster."""
    workflow = Workflow(tmp_path_factory.mktemp("table9"), one_model(tiny_text))
    process = workflow.start(*TARGETS)
    try:
        assert process.wait(timeout=1200) == 0, workflow.output()
        yield workflow
    finally:
        workflow.stop()


@pytest.fixture(scope="module")
def records(cluster: Cluster, workflow: Workflow) -> dict[str, Record]:
    """Slurm's own accounting of the jobs, by node."""
    mine = cluster.records_of(workflow)
    records = {record.node: record for record in mine}
    assert len(records) == len(mine)
    return records


def test_every_node_is_one_job_and_the_hubs_are_none(records: dict[str, Record]) -> None:
    variants = ["llama-1m.bfloat16", "llama-1m.int4"]
    expected = {"tokens/python-docs", "pretrain/llama-1m", TUNED}
    expected |= {f"{stage}/{variant}" for stage in ("quantize", "profile") for variant in variants}
    expected |= {f"evaluate/{variant}.{b}" for variant in variants for b in ("adjacent-swap", "perplexity")}
    expected |= {f"overlap/{b}.python-docs" for b in ("adjacent-swap", "perplexity")}
    assert set(records) == expected
    assert {record.state for record in records.values()} == {"COMPLETED"}


def test_jobs_land_where_the_site_block_says(records: dict[str, Record]) -> None:
    assert {(record.partition, record.account) for record in records.values()} == {("superchips", "lab")}


def test_jobs_get_the_gpus_cores_memory_and_time_of_their_stage(records: dict[str, Record]) -> None:
    def granted(node: str) -> tuple[str | None, str, str, int]:
        given = records[node].resources
        return given.get("gres/gpu:gh200"), given["cpu"], given["mem"], records[node].minutes

    assert granted("tokens/python-docs") == (None, "72", "16000M", 30)
    assert granted("pretrain/llama-1m") == ("1", "72", "9000M", 60)
    assert granted(TUNED) == ("1", "72", "9000M", 60)
    assert granted("quantize/llama-1m.bfloat16") == ("1", "72", "9000M", 30)
    assert granted("quantize/llama-1m.int4") == ("1", "72", "9000M", 60)
    # Two models: bfloat16, with which it is compared, as well.
    assert granted("evaluate/llama-1m.int4.perplexity") == ("1", "72", "9000M", 60)
    assert granted("overlap/perplexity.python-docs") == (None, "1", "8000M", 30)
    # The whole node, of which only the memory is shared out.
    assert granted("profile/llama-1m.int4") == ("4", "288", "8000M", 30)


def test_artifacts_name_the_job_that_built_them(workflow: Workflow, records: dict[str, Record]) -> None:
    for node, record in records.items():
        provenance = json.loads((workflow.path / "results" / node / "provenance.json").read_text())
        assert provenance["slurm_job_id"] == record.number


def test_a_fine_tuned_model_is_the_local_one(workflow: Workflow, local: Workflow) -> None:
    assert workflow.manifest(TUNED)["payload"] == local.manifest(TUNED)["payload"]


def test_the_table_is_the_local_runs_in_all_that_is_not_measured(workflow: Workflow, local: Workflow) -> None:
    frames = [pl.read_csv(path / TABLE) for path in (workflow.path, local.path)]
    columns = [column for column in frames[0].columns if not column.startswith(MEASURED)]
    assert {"model", "average_performance", "MCR", "mcr_measured", "weight_bytes", "perplexity_score"} <= set(columns)
    assert frames[0].columns == frames[1].columns
    assert frames[0].select(columns).rows(named=True) == frames[1].select(columns).rows(named=True)


def test_a_second_run_submits_nothing(workflow: Workflow, cluster: Cluster) -> None:
    before = len(cluster.records())
    result = subprocess.run(workflow.command(*TARGETS), capture_output=True, text=True, cwd=REPOSITORY)
    assert "Nothing to be done" in result.stdout + result.stderr
    assert len(cluster.records()) == before
