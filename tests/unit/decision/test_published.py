"""The published values against what can be recomputed from them."""

import re
from pathlib import Path

import pytest

from effllm.decision.published import read_published
from effllm.errors import UserError

PAPER = Path(__file__).parents[3] / "config" / "paper"
FILES = sorted(PAPER.glob("table*.csv"))
HEADER = "model,precision,metric,value,low,high,code,note\n"
D_HALF_WIDTHS = {
    ("table3", "PPL"): 0.03,
    ("table7", "loss"): 0.001,
    ("table8", "loss"): 0.001,
    ("table9", "average_performance"): 0.0006,
    ("table9", "IT_tokens_per_s"): 0.15,
    ("table9", "AMU_GB"): 0.2,
    ("table9", "AEC_W"): 0.3,
}


def cells(name):
    return {(*f.keys.values(), f.metric): f for f in read_published(PAPER / f"{name}.csv")}


def test_every_table_with_recovered_figures_is_there():
    counts = {path.stem: len(read_published(path)) for path in FILES}
    assert counts == {
        "table3": 36, "table4": 25, "table5": 20, "table6": 17, "table7": 114, "table8": 37, "table9": 162,
        "table10": 30, "table11": 15, "table12": 40, "table13": 2, "table16": 57,
    }  # fmt: skip


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_intervals_follow_from_the_provenance(path):
    for figure in read_published(path):
        if figure.code == "D":
            width = D_HALF_WIDTHS.get((path.stem, figure.metric))
            if width is None:
                assert figure.interval is None and "calibration" in figure.note
            else:
                assert figure.interval == pytest.approx((figure.value - width, figure.value + width))
        else:
            # Rounded, or computed: an interval is always known, and only the computed 1 of a baseline is exact.
            assert figure.interval is not None
            assert figure.interval[0] < figure.interval[1] or figure.metric == "MCR"


def test_compression_rates_recompute_from_the_scores():
    table = cells("table9")
    for (model, precision, metric), figure in table.items():
        if metric != "MCR":
            continue
        size = 4.0 if precision == "int4" else 1.0
        score, base = (table[model, p, "average_performance"].value for p in (precision, "bfloat16"))
        assert figure.value == pytest.approx(size * score / base, abs=0.0015)


@pytest.mark.parametrize(("name", "rows"), [("table7", 12), ("table12", 5)])
def test_samples_per_iteration_recompute_from_nominal_parameters(name, rows):
    table = cells(name)
    checked = 0
    for (model, method, metric), figure in table.items():
        if metric != "implied_samples_per_iter":
            continue
        parameters = float(re.search(r"([\d.]+)B$", model)[1]) * 1e9
        samples = table[model, method, "ST_samples_per_param_s"].value * parameters
        assert figure.value == pytest.approx(samples * table[model, method, "AL_s_per_iter"].value, abs=0.06)
        checked += 1
    assert checked == rows


def test_images_per_iteration_recompute_from_nominal_parameters():
    table = cells("table10")
    for method in ("MHA", "MQA", "GQA", "MLA", "NSA"):
        of = {metric: figure for (model, name, metric), figure in table.items() if name == method}
        images = of["TT_tokens_per_param_s"].value * 675e6 * of["AL_s_per_iter"].value
        implied = of["implied_samples_per_iter"]
        assert implied.value == pytest.approx(images, abs=0.06)
        # 256 images a step, as in the DiT paper, and NSA half of that.
        assert implied.interval[0] < (128 if method == "NSA" else 258) < implied.interval[1]


def test_means_of_six_benchmarks_agree_with_table_9():
    scores: dict = {}
    for (model, precision, _), figure in cells("table16").items():
        scores.setdefault((model, precision), []).append(figure.value)
    complete = {key: sum(values) / 6 for key, values in scores.items() if len(values) == 6}
    assert len(complete) == 9
    table = cells("table9")
    for key, mean in complete.items():
        assert table[*key, "average_performance"].value == pytest.approx(mean, abs=0.0003)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("table7", "Llama-3.2-1B", "LoRA-plus", "AEC_W"), ("table8", "Llama-3.2-1B", "LoRA-plus", "AEC_W")),
        (("table10", "DiT-XL/2", "GQA", "AEC_W"), ("table10", "DiT-XL/2", "MLA", "AEC_W")),
        (("table12", "Qwen2.5-VL-7B", "LoRA", "loss"), ("table12", "Qwen2.5-VL-7B", "LoRA-plus", "loss")),
        (("table4", "Relative", "1.5B", "AL_s_per_iter"), ("table5", "Dense", "3B", "AL_s_per_iter")),
    ],
)
def test_suspicious_repeats_are_noted_on_both_sides(one, other):
    first, second = (cells(place[0])[place[1:]] for place in (one, other))
    assert first.value == second.value
    assert first.note.startswith("repeats Table") and second.note.startswith("repeats Table")


def test_hours_of_devices_are_numbers():
    assert cells("table3")["MQA", "1.5B", "GPU_hours"].value == pytest.approx(33.14 * 48)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a,b\n", "the header is 'a,b'"),
        (HEADER + "m,p,MCR,-,,,S2,\n", "value is '-'; write a finite number"),
        (HEADER + "m,p,MCR,nan,,,S2,\n", "value is 'nan'"),
        (HEADER + "m,p,MCR,1,,2,S2,\n", "low is ''"),
        (HEADER + "m,p,MCR,3,1,2,S2,\n", "value 3 lies outside low to high, 1 to 2"),
        (HEADER + "m,p,MCR,1,,,X,\n", "code 'X' is unknown"),
        (HEADER + "m,p,MCR,1,,\n", "does not have the 8 columns"),
        (HEADER + "m,p,MCR,1,,,S2,\n" + "m,p,MCR,1,,,S2,\n", "m p MCR is given twice"),
    ],
)
def test_a_damaged_file_ends_in_a_sentence(tmp_path, text, says):
    path = tmp_path / "table9.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=re.escape(says)):
        read_published(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_published(tmp_path / "table1.csv")
