"""Tables of a study: what their rows may hold, and which nodes they read."""

import copy
from typing import Any

import pytest

from effllm.errors import UserError
from effllm.study import Graph, parse_study


def _row(*runs: str, method: str = "GQA") -> dict[str, Any]:
    return {"method": method, "parameters": "1M", "runs": list(runs)}


def _refused(study: dict[str, Any], *parts: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_study(study, "study.yaml")
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture
def seeds(tiny: dict[str, Any]) -> dict[str, Any]:
    """The tiny study with Table 3 beside its tables of precisions; one row has two seeds."""
    tiny["tables"] = {name: tiny["tables"][name] for name in ("table9", "table16")}
    tiny["pretraining"]["again"] = copy.deepcopy(tiny["pretraining"]["llama-1m"]) | {"seed": 1}
    tiny["tables"]["table3"] = {"rows": [_row("llama-1m", "again"), _row("qwen2-1m", method="MHA")]}
    return tiny


def test_a_row_may_have_several_seeds(seeds: dict[str, Any]) -> None:
    graph = Graph(parse_study(seeds, "test"))
    assert graph.tables() == ["table3", "table9", "table16", "validity"]
    manifests = [f"results/pretrain/{run}/manifest.json" for run in ("llama-1m", "again", "qwen2-1m")]
    assert graph.table_parents("table3") == {"pretrain": manifests}


def test_runs_that_differ_in_more_than_their_seed_are_no_seeds(seeds: dict[str, Any]) -> None:
    seeds["pretraining"]["again"]["architecture"]["hidden_size"] = 256
    seeds["pretraining"]["again"]["max_steps"] = 100
    _refused(
        seeds,
        "tables.table3.rows.0.runs: 'llama-1m' and 'again' differ in architecture.hidden_size, max_steps",
        "give each a row of its own",
    )


def test_two_runs_of_one_seed_are_one_run(seeds: dict[str, Any]) -> None:
    seeds["pretraining"]["again"]["seed"] = 0
    _refused(
        seeds, "tables.table3.rows.0.runs: 'llama-1m' and 'again' are the same run, with seed 0", "change the seed"
    )


def test_an_unknown_run_is_named(seeds: dict[str, Any]) -> None:
    seeds["tables"]["table3"]["rows"][1] = _row("qwen2-2m", method="MHA")
    _refused(seeds, "tables.table3.rows.1.runs: 'qwen2-2m' does not exist; did you mean 'qwen2-1m'?")


def test_a_run_stands_in_one_row_of_a_table(seeds: dict[str, Any]) -> None:
    seeds["tables"]["table3"]["rows"][1] = _row("llama-1m", method="MHA")
    _refused(seeds, "tables.table3", "the run 'llama-1m' stands twice; list it once")
    # Another table may have it too: Table 3's GQA is Table 4's RoPE.
    seeds["tables"]["table3"]["rows"][1] = _row("qwen2-1m", method="MHA")
    seeds["tables"]["table4"] = {"rows": [_row("llama-1m", method="RoPE")]}
    assert "table4" in Graph(parse_study(seeds, "test")).tables()


def test_two_rows_of_one_name_are_refused(seeds: dict[str, Any]) -> None:
    seeds["tables"]["table3"]["rows"][1]["method"] = "GQA"
    _refused(seeds, "tables.table3", "the row 'GQA 1M' stands twice")


def test_a_row_without_runs_is_refused(seeds: dict[str, Any]) -> None:
    seeds["tables"]["table3"]["rows"][1]["runs"] = []
    _refused(seeds, "tables.table3.rows.1.runs")


def test_a_table_that_the_study_lacks_is_named(seeds: dict[str, Any]) -> None:
    graph = Graph(parse_study(seeds, "test"))
    with pytest.raises(UserError, match=r"tables\.table5: the study 'tiny' does not define it; add it"):
        graph.table_spec("table5")


def test_a_label_changes_its_table_and_no_node(seeds: dict[str, Any]) -> None:
    renamed = copy.deepcopy(seeds)
    renamed["tables"]["table3"]["rows"][1]["method"] = "Multi-head"
    before, after = (Graph(parse_study(study, "test")) for study in (seeds, renamed))
    assert before.table_spec("table3") != after.table_spec("table3")
    assert before.table_spec("validity") == after.table_spec("validity")
    assert before.spec("pretrain", "qwen2-1m") == after.spec("pretrain", "qwen2-1m")


def test_validity_covers_every_table_each_node_once(seeds: dict[str, Any]) -> None:
    parents = Graph(parse_study(seeds, "test")).table_parents("validity")
    assert {stage: len(paths) for stage, paths in parents.items()} == {
        # Three runs behind Table 9's models, two of which are rows of Table 3, and one more seed.
        "pretrain": 4,
        "evaluate": 45,
        "quantize": 9,
        "profile": 9,
    }
    assert all(len(set(paths)) == len(paths) for paths in parents.values())
