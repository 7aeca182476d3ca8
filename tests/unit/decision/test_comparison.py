"""results/comparison.csv over made-up tables, and what is found in the published values."""

from dataclasses import replace
from pathlib import Path

import pytest

from effllm.decision.comparison import COLUMNS, REASONS, Ours, comparison
from effllm.decision.consistency import findings, repeats
from effllm.decision.effects import Paired
from effllm.decision.loss import Pair
from effllm.decision.published import Published
from effllm.decision.rows import Figure
from effllm.decision.sheet import Sheet, sheet_of_published

PAPER = Path(__file__).parents[3] / "config" / "paper"
ROWS = ("M", "bfloat16"), ("M", "int4")
CELLS = {"device": "a GPU", "AMU_scope": "device", "energy_scope": "gpu"}
BETTER = {"average_performance": "higher", "AMU_GB": "lower", "AEC_W": "lower", "latency_ms": "lower"}
COSTS = frozenset(BETTER) - {"average_performance"}


@pytest.fixture(scope="module")
def paper():
    return {path.stem: sheet_of_published(path) for path in sorted(PAPER.glob("table*.csv"))}


def ours(base: dict[str, float], int4: dict[str, float], name="table9", rows=ROWS, cells=CELLS, sizes=None, **more):
    figures = {row: {c: Figure(v) for c, v in of.items()} for row, of in zip(rows, (base, int4), strict=True)}
    keys = {"table9": ("model", "precision"), "table3": ("method", "parameters")}.get(name, ("model", "method"))
    return Sheet(
        name, keys, figures, {}, dict.fromkeys(rows, cells), ("device",), more.get("better", BETTER),
        more.get("costs", COSTS), sizes or {}, is_published=False,
    )  # fmt: skip


def published(base: dict[str, float], int4: dict[str, float], name="table9", rows=ROWS, sizes=None, **more):
    own = ours(base, int4, name, rows, {}, sizes, **more)
    given = {
        (row, column): Published(dict(zip(own.keys, row, strict=True)), column, figure.value, None, "S2", "as quoted")
        for row, columns in own.figures.items()
        for column, figure in columns.items()
    }
    return replace(own, scope=(), cells={}, is_published=True, published=given)


def lines(mine: Sheet, theirs: Sheet, benchmarks=(), paired=None, baseline="bfloat16", **others):
    table = Ours(mine, baseline, frozenset(benchmarks))
    rows = comparison({mine.name: table}, {theirs.name: theirs} | others, *([paired] if paired else []))
    assert all(tuple(row) == COLUMNS for row in rows)
    return {(row["kind"], row["row"], row["column"]): row for row in rows if row["kind"] != "finding"}


def test_a_ratio_travels_between_machines_and_an_absolute_does_not():
    found = lines(ours({"AMU_GB": 10.0}, {"AMU_GB": 4.0}), published({"AMU_GB": 40.0}, {"AMU_GB": 20.0}))
    figure, ratio = found["figure", "M int4", "AMU_GB"], found["ratio", "M int4", "AMU_GB"]
    assert (figure["ours"], figure["published"], figure["code"], figure["note"]) == (4.0, 20.0, "S2", "as quoted")
    assert (figure["comparable"], figure["reason_code"], figure["ours_over_published"]) == ("no", "other_machine", None)
    assert (ratio["ours"], ratio["published"], ratio["against"]) == (0.4, 0.5, "M bfloat16")
    assert (ratio["comparable"], ratio["reason_code"], ratio["ours_over_published"]) == ("yes", None, 0.8)
    assert ("ratio", "M bfloat16", "AMU_GB") not in found


@pytest.mark.parametrize(
    ("device", "comparable"), [("NVIDIA GH200 480GB", "yes"), ("NVIDIA H200", "no"), ("NVIDIA H100 80GB HBM3", "no")]
)
def test_an_absolute_compares_on_the_published_machine_alone(device, comparable):
    mine = ours({"AMU_GB": 10.0}, {"AMU_GB": 4.0}, cells=CELLS | {"device": device})
    found = lines(mine, published({"AMU_GB": 40.0}, {"AMU_GB": 20.0}))["figure", "M int4", "AMU_GB"]
    assert found["comparable"] == comparable
    assert found["ours_over_published"] == (0.2 if comparable == "yes" else None)


@pytest.mark.parametrize(
    ("column", "cells"), [("AMU_GB", {"AMU_scope": "host process tree"}), ("AEC_W", {"energy_scope": "package"})]
)
def test_figures_of_the_host_compare_with_no_devices(column, cells):
    mine = ours({column: 10.0}, {column: 4.0}, cells=CELLS | cells)
    found = lines(mine, published({column: 40.0}, {column: 20.0}))
    assert {line["reason_code"] for line in found.values()} == {"other_scope"}


def test_what_we_lack_is_empty_and_says_why():
    theirs = published({"AMU_GB": 40.0}, {"AMU_GB": 20.0})
    mine = ours({"AMU_GB": 10.0}, {})
    found = lines(mine, theirs)
    assert (found["figure", "M int4", "AMU_GB"]["ours"], found["figure", "M int4", "AMU_GB"]["reason_code"]) == (
        None, "not_measured",
    )  # fmt: skip
    figures = {ROWS[0]: mine.figures[ROWS[0]]}
    invalid = replace(mine, figures=figures, left_out={ROWS[1]: "invalid: disturbed"})
    assert lines(invalid, theirs)["ratio", "M int4", "AMU_GB"]["reason_code"] == "not_ok"
    absent = lines(replace(mine, figures=figures), theirs)
    assert {absent[kind, "M int4", "AMU_GB"]["reason_code"] for kind in ("figure", "ratio")} == {"no_row"}
    assert absent["ratio", "M int4", "AMU_GB"]["published"] == 0.5
    renamed = lines(mine, theirs, baseline="float32")["ratio", "M int4", "AMU_GB"]
    assert (renamed["reason_code"], renamed["comparable"]) == ("no_baseline", "no")
    unrecovered = lines(ours({"AMU_GB": 10.0}, {"AMU_GB": 4.0}), published({}, {"AMU_GB": 20.0}))
    assert unrecovered["ratio", "M int4", "AMU_GB"]["reason_code"] == "not_recovered"
    assert set(REASONS) >= {line["reason_code"] for line in absent.values()}


def test_means_compare_over_the_same_benchmarks_with_their_paired_interval(paper):
    figures = {"average_performance": 0.5}, {"average_performance": 0.45}
    pair = Pair("difference", -0.05, -0.06, -0.04)
    paired = Paired({("table9", "M int4", "M bfloat16", "average_performance"): pair})
    place = "ratio", "M int4", "average_performance"
    other = lines(ours(*figures), published(*figures), ["MMLU-Pro"], paired, table16=paper["table16"])[place]
    assert (other["comparable"], other["reason_code"]) == ("no", "other_benchmarks")
    six = ("MMLU-Pro", "BBH", "GPQA", "IFEval", "MATH", "MuSR")
    same = lines(ours(*figures), published(*figures), six, paired, table16=paper["table16"])[place]
    assert same["comparable"] == "yes"
    assert (same["ours"], same["ours_low"], same["ours_high"]) == pytest.approx((0.9, 0.88, 0.92))


def test_throughput_is_compared_times_parameters():
    column = "ST_samples_per_param_s"
    kind = {"name": "table7", "rows": (("M-1B", "LoRA"), ("M-1B", "DoRA")), "better": {column: "higher"}}
    costs = frozenset([column])
    mine = ours({column: 3e-9}, {column: 2e-9}, sizes=dict.fromkeys(kind["rows"], 1.2), costs=costs, **kind)
    theirs = published({column: 8e-8}, {column: 4e-8}, sizes=dict.fromkeys(kind["rows"], 1.0), costs=costs, **kind)
    found = lines(mine, theirs, baseline="LoRA")
    figure = found["figure", "M-1B DoRA", column]
    assert (figure["ours"], figure["published"]) == pytest.approx((2.4, 40.0))
    assert found["ratio", "M-1B DoRA", column]["ours"] == pytest.approx(2 / 3)
    unknown = lines(replace(mine, sizes={}), theirs, baseline="LoRA")["figure", "M-1B DoRA", column]
    assert unknown["reason_code"] == "no_size"


def test_steps_of_different_batches_do_not_compare(paper):
    rows = (("Llama-3.2-1B", "LoRA"), ("Llama-3.2-1B", "Freeze"))
    mine = ours({"AL_s_per_iter": 1.0}, {"AL_s_per_iter": 0.5}, "table7", rows, better={"AL_s_per_iter": "lower"})
    found = lines(mine, paper["table7"], baseline="LoRA")
    assert found["ratio", "Llama-3.2-1B Freeze", "AL_s_per_iter"]["reason_code"] == "other_batch"
    assert found["ratio", "Llama-3.2-1B DoRA", "AL_s_per_iter"]["reason_code"] == "no_row"


def test_transformers_of_images_compare_by_cost_where_their_batch_may_be_one(paper):
    rows = (("DiT-XL/2", "MHA"), ("DiT-XL/2", "MQA"), ("DiT-XL/2", "NSA"))
    costs = {"AL_s_per_iter": "lower", "TT_tokens_per_param_s": "higher"}
    kind = {"name": "table10", "better": {"FID": "lower", **costs}, "costs": frozenset(costs)}
    two = ours({"FID": 20.0, "AL_s_per_iter": 0.4, "TT_tokens_per_param_s": 4e-4},
               {"FID": 10.0, "AL_s_per_iter": 0.3, "TT_tokens_per_param_s": 6e-4}, rows=rows[:2], **kind)  # fmt: skip
    mine = replace(
        two,
        figures={**two.figures, rows[2]: two.figures[rows[1]]},
        cells=dict.fromkeys(rows, CELLS),
        sizes={rows[0]: 0.675, rows[1]: 0.605, rows[2]: 0.635},
    )
    found = lines(mine, paper["table10"], baseline="MHA")
    assert found["ratio", "DiT-XL/2 MQA", "AL_s_per_iter"]["comparable"] == "yes"
    assert found["ratio", "DiT-XL/2 NSA", "AL_s_per_iter"]["reason_code"] == "other_batch"
    assert found["figure", "DiT-XL/2 MQA", "AL_s_per_iter"]["reason_code"] == "other_machine"
    assert found["ratio", "DiT-XL/2 MQA", "FID"]["reason_code"] == "other_training"
    assert found["ratio", "DiT-XL/2 MQA", "TT_tokens_per_param_s"]["ours"] == pytest.approx(1.5 * 605 / 675)
    assert found["ratio", "DiT-XL/2 MQA", "TT_tokens_per_param_s"]["published"] == pytest.approx(1.2054, abs=1e-4)


@pytest.mark.parametrize(
    ("tokens", "code"), [("350000000000", None), ("1e9", "other_training"), (None, "other_training")]
)
def test_perplexities_compare_after_as_many_tokens(tokens, code):
    rows = (("GQA", "0.5B"), ("MLA", "0.5B"))
    kind = {"name": "table3", "rows": rows, "better": {"PPL": "lower"}, "costs": frozenset()}
    mine = ours({"PPL": 9.0}, {"PPL": 8.0}, cells={"tokens_seen": tokens}, **kind)
    found = lines(mine, published({"PPL": 8.5}, {"PPL": 8.3}, **kind), baseline="GQA")
    assert {line["reason_code"] for line in found.values()} == {code}


def test_the_known_faults_of_the_published_tables_are_found(paper):
    found = {(finding.rule, finding.table, finding.row, finding.column) for finding in findings(paper)}
    known = {
        ("repeat", "table7", "Llama-3.2-1B LoRA-plus", "AEC_W"),
        ("repeat", "table8", "Llama-3.2-1B LoRA-plus", "AEC_W"),
        ("repeat", "table10", "DiT-XL/2 GQA", "AEC_W"),
        ("repeat", "table12", "Qwen2.5-VL-7B LoRA", "loss"),
        *(("repeat", "table5", "Dense 3B", column) for column in ("AMU_GB", "AL_s_per_iter", "TT_tokens_per_param_s")),
        ("constant_ratio", "table9", "float16", "IT_tokens_per_s"),
        ("nominal_compression", "table9", "int4", "MCR"),
        ("throughput", "table3", "GQA 1.5B", "TT_tokens_per_param_s"),
        ("comparable", "table7", "Llama-3.2-1B", "AL_s_per_iter"),
        ("comparable", "table10", "DiT-XL/2", "AL_s_per_iter"),
        ("latency_against_throughput", "table9", "Phi-4 int4", "AL_sum_ms"),
    }
    assert known - found == {("throughput", "table3", "GQA 1.5B", "TT_tokens_per_param_s")}, "its TT was not recovered"
    assert ("throughput", "table4", "RoPE 1.5B", "TT_tokens_per_param_s") in found


def test_chance_repeats_across_tables_are_left_out(paper):
    found = [finding for finding in repeats(paper) if finding.rule == "repeat"]
    for table, row in (("table9", "Yi-34B int4"), ("table3", "MLA 1.5B")):
        assert not [finding for finding in found if (finding.table, finding.row) == (table, row)]


def test_notes_name_what_was_found_of_the_very_figure(paper):
    rows = (("Llama-3.2-1B", "LoRA"), ("Llama-3.2-1B", "LoRA-plus"))
    mine = ours({"AEC_W": 1.0}, {"AEC_W": 2.0}, "table7", rows)
    made = comparison({"table7": Ours(mine, "LoRA")}, paper)
    (figure,) = (r for r in made if (r["kind"], r["row"], r["column"]) == ("figure", "Llama-3.2-1B LoRA-plus", "AEC_W"))
    assert "545.12 is also in table8, Llama-3.2-1B LoRA-plus" in figure["note"]
    assert [row["table"] for row in made if row["kind"] == "finding" and row["reason_code"] == "constant_ratio"] == [
        "table9"
    ]
