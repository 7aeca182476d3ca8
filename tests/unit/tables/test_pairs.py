"""The pairs of a table from written artifacts: every cell worked out by hand or by scipy."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import scipy.stats

from effllm.assembly.assemble import assemble, write_csv
from effllm.errors import CellFailure, UserError
from tests.unit.tables.conftest import DEVICE, EFFICIENCY, LEARNED, QUALITY, TELEMETRY, Study

DOCUMENTS = {"document": [0, 1, 2, 3], "tokens": [10, 20, 30, 40]}


def answers(*outcomes: float, cluster: list[str] | None = None, **changes: Any) -> list[dict[str, Any]]:
    """Rows of samples.jsonl for one benchmark of the held-out kind."""
    return [
        {"task": "swap", "doc_id": number, "doc_hash": f"h{number}", "filter": "none", "acc": outcome}
        | ({"cluster": cluster[number]} if cluster else {})
        | changes
        for number, outcome in enumerate(outcomes)
    ]


def pair(study: Study, table: str, row: str, column: str) -> dict[str, Any]:
    """The one row of a table's pairs for a row and column."""
    lines = study.rows(f"{table}-pairs")
    assert {line["table"] for line in lines} == {table}
    found = [line for line in lines if (line["row"], line["column"]) == (row, column)]
    assert len(found) == 1, found
    return found[0]


def score(study: Study, variant: str, *outcomes: int, **changes: Any) -> None:
    changes = {"samples": answers(*outcomes), "metric": "acc,none", "score": sum(outcomes) / len(outcomes)} | changes
    study.score(variant, "adjacent-swap", changes.pop("score"), "accuracy", **changes)


def test_a_score_is_compared_item_by_item_with_the_models_own_baseline(study: Study) -> None:
    score(study, "llama-1m.bfloat16", *[1, 1, 0, 0] * 50)
    score(study, "llama-1m.int4", *[1, 0, 0, 0] * 10, *[1, 1, 0, 0] * 40)
    found = pair(study, "table9", "Llama-1M int4", "adjacent-swap_score")
    assert (found["baseline"], found["measure"], found["better"], found["role"]) == (
        "Llama-1M bfloat16", "difference", "higher", "quality",
    )  # fmt: skip
    assert (found["baseline_value"], found["value"], found["change"]) == (0.5, 0.45, -0.05)
    assert (found["items"], found["clusters"], found["differing"], found["bound"]) == (200, 200, 10, None)
    center, extended = -10 / 202, [0] * 190 + [-1] * 11 + [1]
    reach = scipy.stats.norm.ppf(0.975) * math.sqrt(sum((x - center) ** 2 for x in extended) / 202 / 202)
    assert (found["low"], found["high"]) == pytest.approx((center - reach, center + reach), rel=1e-4)
    by_label = pair(study, "table16", "Llama-1M int4", "Adjacent swap")
    assert (by_label["low"], by_label["high"]) == (found["low"], found["high"])
    mean = pair(study, "table9", "Llama-1M int4", "average_performance")
    assert (mean["change"], mean["low"], mean["high"]) == (-0.05, found["low"], found["high"]), "of one benchmark"
    for name in ("table9", "table16"):
        assert not [line for line in study.rows(f"{name}-pairs") if line["row"] == line["baseline"]]


def test_where_no_item_differs_the_bound_is_three_of_the_sentences(study: Study) -> None:
    sentences = [f"s{number // 2}" for number in range(40)]
    for variant in ("llama-1m.bfloat16", "llama-1m.int4"):
        score(study, variant, *[1, 0] * 20, samples=answers(*[1, 0] * 20, cluster=sentences))
    found = pair(study, "table9", "Llama-1M int4", "adjacent-swap_score")
    assert (found["change"], found["differing"], found["clusters"]) == (0, 0, 20)
    assert (found["low"], found["high"], found["bound"]) == (-0.15, 0.15, 0.15)


def test_bits_per_byte_are_compared_by_document(study: Study) -> None:
    texts = [(100, -60.0), (300, -150.0), (200, -130.0)]
    for variant, factor in (("llama-1m.bfloat16", 1.0), ("llama-1m.int4", 1.1)):
        samples = [
            {"task": "text", "doc_id": n, "doc_hash": f"t{n}", "filter": "none", "bits_per_byte": [factor * nats, size]}
            for n, (size, nats) in enumerate(texts)
        ]
        value = factor * 340 / 600 / math.log(2)
        study.score(variant, "perplexity", value, "perplexity", samples=samples, metric="bits_per_byte,none")
    found = pair(study, "table9", "Llama-1M int4", "perplexity_score")
    assert found["change"] == pytest.approx(34 / 600 / math.log(2), rel=1e-4)
    assert found["low"] < found["change"] < found["high"] and found["clusters"] == 3


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"samples": answers(1, 0, doc_hash="another")}, "other_items"),
        ({"samples": answers(1, 0, 1)}, "no_items"),
        ({"samples": answers(1, 0, filter="strict")}, "no_items"),
        ({"samples": None}, "no_items"),
    ],
)
def test_what_cannot_be_paired_says_why_and_is_no_number(study: Study, changes: dict[str, Any], code: str) -> None:
    score(study, "llama-1m.bfloat16", 1, 1)
    score(study, "llama-1m.int4", 1, 0, **changes)
    found = pair(study, "table9", "Llama-1M int4", "adjacent-swap_score")
    assert (found["change"], found["low"], found["reason_code"]) == (None, None, code)
    assert found["reason"] and found["value"] == 0.5
    assert pair(study, "table9", "Llama-1M int4", "average_performance")["reason_code"] == code


def test_costs_are_ratios_with_the_interval_of_both_sides(study: Study) -> None:
    found = pair(study, "table9", "Llama-1M int4", "latency_ms")
    assert (found["measure"], found["better"], found["change"]) == ("ratio", "lower", 1)
    low = math.hypot(math.log(12.3457 / 12), math.log(13 / 12.3457))
    assert found["low"] == pytest.approx(math.exp(-low), rel=1e-4)
    weight = pair(study, "table9", "Llama-1M int4", "weight_bytes")
    assert (weight["change"], weight["low"], weight["reason_code"]) == (0.4, None, "no_interval")
    power = pair(study, "table9", "Llama-1M int4", "AEC_W")
    assert (power["change"], power["reason_code"]) == (None, "not_measured")


@pytest.mark.parametrize(
    ("changes", "code", "ratio"),
    [
        ({"device": DEVICE | {"uuid": "GPU-1"}}, "other_card", 1),
        ({"device": DEVICE | {"name": "another"}}, "other_conditions", None),
        ({"threads": 4}, "other_conditions", None),
    ],
)
def test_costs_of_other_conditions_are_not_compared(
    study: Study, changes: dict[str, Any], code: str, ratio: float | None
) -> None:
    path = Path(study.graph.manifest("profile", "llama-1m.int4")).parent / "profile.json"
    study.write("profile", "llama-1m.int4", "profile.json", json.loads(path.read_text()) | changes)
    found = pair(study, "table9", "Llama-1M int4", "latency_ms")
    assert (found["change"], found["low"], found["reason_code"]) == (ratio, None, code)


def test_a_failed_or_disturbed_row_has_no_costs_and_keeps_its_scores(study: Study) -> None:
    for variant in ("llama-1m.bfloat16", "llama-1m.int4"):
        score(study, variant, 1, 0)
    telemetry = TELEMETRY | {"other_cpu_fraction": 0.4}
    score(study, "llama-1m.int4", 1, 0, telemetry=telemetry)
    latency = pair(study, "table9", "Llama-1M int4", "latency_ms")
    assert (latency["change"], latency["reason_code"]) == (None, "invalid")
    assert "disturbed: evaluate adjacent-swap" in latency["reason"]
    assert pair(study, "table9", "Llama-1M int4", "adjacent-swap_score")["change"] == 0
    study.score("llama-1m.int4", "adjacent-swap", 0.0, "accuracy", CellFailure("oom", "too large"))
    assert pair(study, "table9", "Llama-1M int4", "latency_ms")["reason_code"] == "failed"
    lost = pair(study, "table9", "Llama-1M int4", "average_performance")
    assert (lost["change"], lost["reason_code"]) == (None, "not_measured")


def test_an_altered_record_of_items_ends_in_a_sentence(study: Study) -> None:
    score(study, "llama-1m.bfloat16", 1, 0)
    path = Path(study.graph.manifest("evaluate", "llama-1m.bfloat16.adjacent-swap")).parent / "records/samples.jsonl"
    path.write_text(path.read_text().replace('"acc": 1', '"acc": 0'))
    with pytest.raises(UserError, match=r"samples.jsonl does not match the sha256.*delete"):
        study.rows("table9-pairs")


@pytest.fixture
def trained(micro: dict[str, Any], tmp_path: Path) -> Study:
    """Table 3: GQA of two seeds, MHA at its size, MHA at a size without GQA."""
    runs = micro["pretraining"]
    runs["again"] = copy.deepcopy(runs["llama-1m"]) | {"seed": 1}
    runs["large"] = copy.deepcopy(runs["qwen2-1m"]) | {"seed": 2}
    rows = [
        {"method": "GQA", "parameters": "1M", "runs": ["llama-1m", "again"]},
        {"method": "MHA", "parameters": "1M", "runs": ["qwen2-1m"]},
        {"method": "MHA", "parameters": "2M", "runs": ["large"]},
    ]
    micro["tables"] = {"table3": {"rows": rows}}
    study = Study(micro, tmp_path)
    for run, nll in {"llama-1m": [20, 30, 50, 60], "again": [22, 30, 50, 62], "qwen2-1m": [22, 33, 54, 66]}.items():
        quality = QUALITY | {"held_out_loss": sum(nll) / 100, "seed": int(run == "again")}
        study.train(run, EFFICIENCY, quality, held_out={**DOCUMENTS, "nll": list(map(float, nll))})
    study.train("large", EFFICIENCY, QUALITY, held_out={**DOCUMENTS, "nll": [1.0] * 4, "document": [0, 1, 2, 9]})
    return study


def test_perplexity_is_a_ratio_over_documents_and_seeds_count_once(trained: Study) -> None:
    found = pair(trained, "table3", "MHA 1M", "held_out_loss")
    differences = [22 - 21, 33 - 30, 54 - 50, 66 - 61]
    change, tokens = sum(differences) / 100, DOCUMENTS["tokens"]
    spread = sum((d - change * n) ** 2 for d, n in zip(differences, tokens, strict=True))
    reach = scipy.stats.t.ppf(0.975, 3) * math.sqrt(spread * 4 / 3) / 100
    assert found["baseline"] == "GQA 1M"
    expected = (change, change - reach, change + reach)
    assert (found["change"], found["low"], found["high"]) == pytest.approx(expected, rel=1e-4)
    perplexity = pair(trained, "table3", "MHA 1M", "PPL")
    assert (perplexity["measure"], perplexity["change"]) == ("ratio", pytest.approx(math.exp(change), rel=1e-5))
    assert perplexity["high"] == pytest.approx(math.exp(change + reach), rel=1e-4)


def test_a_size_that_the_baseline_lacks_is_compared_with_its_first_row(trained: Study) -> None:
    found = pair(trained, "table3", "MHA 2M", "PPL")
    assert (found["baseline"], found["reason_code"]) == ("GQA 1M", "other_items")


def test_the_study_names_another_baseline_and_no_spec_of_a_table_changes(trained: Study, micro: dict[str, Any]) -> None:
    before = trained.graph.table_spec("table3")
    micro["tables"]["table3"]["baseline"] = "MHA"
    other = Study(micro, trained.root)
    assert other.graph.table_spec("table3") == before
    assert pair(other, "table3", "GQA 1M", "PPL")["baseline"] == "MHA 1M"


def test_methods_are_compared_with_the_suites_first_on_one_model(tiny: dict[str, Any], tmp_path: Path) -> None:
    del tiny["models"]["llama-1m.dora"]
    tiny["tables"] = {"table7": {"suite": "describe"}}
    tiny["finetuning"]["describe"].update(
        models=["llama-1m", "qwen2-1m"], methods=["lora", "full"], parallel_by_method={}
    )
    study = Study(tiny, tmp_path)
    samples = {"sample": ["a", "a#2", "b"], "tokens": [4, 4, 2], "nll_before": [9.0] * 3}
    for model in ("llama-1m", "qwen2-1m"):
        for method, loss in (("lora", 2.0), ("full", 1.0)):
            content = LEARNED | {"held_out_loss": loss, "train_loss": loss, "steps": 4, "samples_seen": 8}
            nll = [loss * tokens for tokens in samples["tokens"]]
            held_out = {**samples, "nll": [nll[0] + 1, nll[1] - 1, nll[2]]}
            study.train(f"{model}.describe.{method}", EFFICIENCY, content, stage="finetune", held_out=held_out)
    found = pair(study, "table7", "Qwen2-1M Full", "held_out_loss")
    assert (found["baseline"], found["change"], found["clusters"]) == ("Qwen2-1M LoRA", -1, 2)
    training = pair(study, "table7", "Qwen2-1M Full", "loss")
    assert (training["change"], training["low"], training["reason_code"]) == (-1, None, "no_interval")
    tiny["tables"]["table7"]["baseline"] = "full"
    assert pair(Study(tiny, tmp_path), "table7", "Qwen2-1M LoRA", "held_out_loss")["change"] == 1


def test_a_table_of_baselines_alone_has_no_pairs_and_keeps_its_header(study: Study) -> None:
    spec = study.graph.table_spec("table9-pairs")
    spec["config"]["precisions"] = ["bfloat16"]
    frame = assemble("table9-pairs", spec, study.graph.table_parents("table9-pairs"))
    assert frame.height == 0 and frame.columns[:3] == ["table", "row", "baseline"]


def test_the_table_of_all_pairs_is_the_others_one_after_the_other(study: Study) -> None:
    score(study, "llama-1m.bfloat16", *[1, 1, 0, 0] * 50)
    score(study, "llama-1m.int4", *[1, 0, 0, 0] * 50)
    texts = []
    for path in map(Path, study.graph.table_parents("pairs")["pairs"]):
        write_csv(assemble(path.stem, study.graph.table_spec(path.stem), study.graph.table_parents(path.stem)), path)
        texts.append(path.read_text().splitlines())
    together = study.root / "pairs.csv"
    write_csv(assemble("pairs", study.graph.table_spec("pairs"), study.graph.table_parents("pairs")), together)
    assert together.read_text().splitlines() == [texts[0][0], *(line for lines in texts for line in lines[1:])]
    assert len(texts) > 1


def test_an_unknown_baseline_is_answered_with_the_nearest(micro: dict[str, Any], tmp_path: Path) -> None:
    rows = [{"method": "GQA", "parameters": "1M", "runs": ["llama-1m"]}]
    micro["tables"] = {"table3": {"rows": rows, "baseline": "GQAA"}}
    with pytest.raises(UserError, match="baseline: no row has the method 'GQAA'; did you mean 'GQA'"):
        Study(micro, tmp_path)
