"""Ranks, comparison and claims as tables of a study: made of written CSVs, and of config/paper by content."""

import shutil
from pathlib import Path

import polars as pl
import pytest

import effllm.decision.paper as published
from effllm.assembly.assemble import write_table
from effllm.decision import claims, comparison, crossover, ranks
from effllm.errors import UserError
from effllm.stages.graph import Graph
from effllm.study import load_study
from effllm.study.table_graph import DECISIONS
from effllm.tables.record import damage_of_table, read_record
from tests.conftest import REPOSITORY

H100 = REPOSITORY / "docs" / "results" / "h100"
PAIR_HEADER = "table,row,baseline,column,measure,value,baseline_value,change,low,high,bound\n"
COLUMNS = {"ranks": ranks.COLUMNS, "comparison": comparison.COLUMNS, "claims": claims.COLUMNS}


@pytest.fixture
def graph(tmp_path: Path) -> Graph:
    """The study of the committed results, with copies of its tables in place; 10 and 11 have none yet."""
    study = load_study(REPOSITORY / "config" / "single-gpu-shapes.yaml")
    tables = study.tables.model_copy(update={"table10": None, "table11": None})
    found = Graph(study.model_copy(update={"tables": tables}), str(tmp_path))
    for path in found.table_parents("ranks")["tables"]:
        shutil.copy(H100 / Path(path).name, path)
    for path in found.table_parents("ranks")["pairs"]:
        Path(path).write_text(PAIR_HEADER)
    return found


def build(graph: Graph, name: str) -> pl.DataFrame:
    path = Path(graph.results, f"{name}.csv")
    inputs = graph.table_parents(name)
    write_table(name, spec=graph.table_spec(name), inputs=inputs, output=str(path), log=str(path.with_suffix(".log")))
    assert damage_of_table(path) is None
    record = read_record(path)
    assert record is not None
    assert record["inputs"].keys() == {Path(item).name for items in inputs.values() for item in items}
    return pl.read_csv(path, infer_schema_length=None)


@pytest.mark.parametrize("name", DECISIONS)
def test_each_is_made_of_the_studys_tables(graph: Graph, name: str) -> None:
    frame = build(graph, name)
    assert tuple(frame.columns) == COLUMNS[name]
    assert frame.height > 100
    first = Path(graph.results, f"{name}.csv").read_bytes()
    build(graph, name)
    assert Path(graph.results, f"{name}.csv").read_bytes() == first


def test_ranks_and_claims_are_of_both_sources(graph: Graph) -> None:
    for name in ("ranks", "claims"):
        assert set(build(graph, name)["source"]) == {"ours", "published"}


def test_claims_take_the_interval_of_paired_differences(graph: Graph) -> None:
    def basis() -> set[str]:
        pairs = build(graph, "claims").filter(source="ours", claim=8, part="group")
        return set(pairs["basis"].drop_nulls())

    table = pl.read_csv(H100 / "table3.csv", infer_schema_length=None)
    assert table["PPL"].null_count() == table.height, "random weights have no perplexity"
    path = Path(graph.results, "table3.csv")
    table.with_columns(pl.Series("PPL", [9.0 + number for number in range(table.height)])).write_csv(path)
    assert "paired interval" not in basis()
    names = [f"{row['method']} {row['parameters']}" for row in table.iter_rows(named=True)]
    rows = [
        f'table3,"{name}","{base}",PPL,ratio,{9.0 + n},{9.0 + b},{(9 + n) / (9 + b)},0.01,3,\n'
        for b, base in enumerate(names)
        for n, name in enumerate(names)
        if n != b
    ]
    (Path(graph.results) / "table3-pairs.csv").write_text(PAIR_HEADER + "".join(rows))
    assert basis() == {"paired interval"}


def test_a_published_file_that_changed_during_the_run_is_refused(
    graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "paper"
    shutil.copytree(published.PAPER, copy)
    spec = graph.table_spec("claims")
    (copy / "table9.csv").write_text((copy / "table9.csv").read_text() + "\n")
    monkeypatch.setattr(published, "PAPER", copy)
    with pytest.raises(UserError, match=r"table9\.csv has changed since the run began"):
        published.published_file("table9.csv", spec["config"]["published"]["table9"])


def test_crossovers_are_of_the_precisions_by_workload_and_batch(graph: Graph) -> None:
    frame = build(graph, "crossover")
    assert tuple(frame.columns) == crossover.COLUMNS
    batches = {id: workload.batch_size for id, workload in graph.study.inference.workloads.items()}
    assert dict(frame.select("workload", "batch_size").iter_rows()).items() <= batches.items()
    (time,) = frame.filter(method="int4", resource="time", column="latency_ms").to_dicts()
    assert (time["workload"], time["baseline"]) == (graph.study.tables.table9.workload, "bfloat16")
    assert 1.6 < time["parameters_b_low"] < time["parameters_b"] < time["parameters_b_high"] < 7.6
    (memory,) = frame.filter(method="int4", resource="memory", column="memory_peak_GB").to_dicts()
    assert (memory["parameters_b"], memory["reason"]) == (None, "not within the measured sizes")


def test_specs_name_content_and_no_path(graph: Graph) -> None:
    for name in DECISIONS:
        assert str(REPOSITORY) not in str(graph.table_spec(name))
    assert graph.table_spec("claims")["config"]["claims"] == published.published_digest("claims.yaml")
