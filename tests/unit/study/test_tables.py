"""Tables of a study: what their rows may hold, and which nodes they read."""

import copy
from pathlib import Path
from typing import Any

import pytest

from effllm.errors import UserError
from effllm.stages.graph import Graph
from effllm.study import load_study, parse_study


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
    own = ["table3", "table9", "table16"]
    paired = [f"{table}-pairs" for table in own]
    assert graph.tables() == [*own, *paired, "validity", "pairs", "ranks", "comparison", "claims", "crossover"]
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
        # Two runs behind Table 9's models, of which one is a row of Table 3, another row, and one more seed.
        "pretrain": 4,
        "evaluate": 50,
        # Each of the five benchmarks with the corpus that the models were trained on.
        "overlap": 5,
        "quantize": 10,
        "profile": 10,
    }
    assert all(len(set(paths)) == len(paths) for paths in parents.values())


@pytest.mark.parametrize(("name", "ours"), [("tiny", "Mamba-2"), ("paper", "Mamba-2 (not in the paper)")])
def test_shipped_studies_have_the_papers_rows(repository: Path, name: str, ours: str) -> None:
    tables = load_study(repository / "config" / f"{name}.yaml").tables
    methods = {number: [row.method for row in getattr(tables, f"table{number}").rows] for number in (3, 4, 5, 6)}
    assert methods[3] == ["MQA", "GQA", "MLA", "NSA"] * 3
    assert methods[4] == ["RoPE", "Absolute", "Learnable Absolute", "Relative", "None"]
    assert methods[5] == ["Dense", "Dense", "MoE", "MoE"]
    families = ("Qwen2.5 (Transformer)", "Mamba", "Pythia", "RWKV")
    assert methods[6].pop(6) == ours
    assert methods[6] == [family for family in families for _ in range(3)]


def test_an_unknown_suite_is_named(tiny: dict[str, Any]) -> None:
    tiny["tables"]["table7"] = {"suite": "describes"}
    _refused(tiny, "tables.table7.suite: 'describes' does not exist; did you mean 'describe'?")


def test_a_table_of_methods_reads_every_method_of_every_model(tiny: dict[str, Any]) -> None:
    tiny["tables"] = {"table8": {"suite": "name"}}
    suite = tiny["finetuning"]["name"]
    nodes = [f"{model}.name.{method}" for model in suite["models"] for method in suite["methods"]]
    graph = Graph(parse_study(tiny, "test"))
    assert graph.table_parents("table8") == {"finetune": [f"results/finetune/{node}/manifest.json" for node in nodes]}
    assert set(nodes) <= set(graph.ids("finetune"))


def test_validity_reads_the_fine_tuning_behind_a_quantized_model_and_its_base(tiny: dict[str, Any]) -> None:
    table = tiny["tables"]["table16"] | {"models": ["llama-1m.dora"]}
    tiny["tables"] = {"table16": table}
    parents = Graph(parse_study(tiny, "test")).table_parents("validity")
    assert parents["finetune"] == ["results/finetune/llama-1m.describe.dora/manifest.json"]
    assert parents["pretrain"] == ["results/pretrain/llama-1m/manifest.json"]
