"""Recommendations on tables made by hand: the words, the exit codes, the JSON, and a user's mistakes."""

import csv
import json
from pathlib import Path

import jsonschema
import pytest

from effllm.cli import main
from tests.conftest import REPOSITORY
from tests.unit.decision.tables import line, write

H100 = REPOSITORY / "docs" / "results" / "h100"
SCHEMA = json.loads((REPOSITORY / "config" / "recommendation.schema.json").read_text())

BFLOAT16 = line(
    "M bfloat16",
    average_performance=(0.6, 0.57, 0.63),
    latency_ms=(100, 99, 101),
    memory_peak_GB=16,
    energy_J_per_token=2,
)
FLOAT16 = line(
    "M float16", average_performance=(0.601, 0.571, 0.631), latency_ms=(99, 98, 101), memory_peak_GB=16,
    energy_J_per_token=2.01, status="invalid", reason="disturbed: other processes took 20.0%",
)  # fmt: skip
INT8 = line(
    "M int8", average_performance=(0.59, 0.56, 0.62), latency_ms=(120, 118, 122), memory_peak_GB=17,
    energy_J_per_token=2.2,
)  # fmt: skip
INT4 = line(
    "M int4", average_performance=(0.58, 0.55, 0.61), latency_ms=(80, 78, 82), memory_peak_GB=6,
    energy_J_per_token=1.4, warnings="windows of 3 s",
)  # fmt: skip
INT2 = line(
    "M int2", average_performance=(0.4, 0.37, 0.43), latency_ms=(60, 58, 62), memory_peak_GB=4, energy_J_per_token=1
)


def ask(capsys: pytest.CaptureFixture[str], table: Path, *options: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    with pytest.raises(SystemExit) as caught:
        main(["recommend", str(table), *options])
    captured = capsys.readouterr()
    return int(str(caught.value.code)), captured.out, captured.err


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return write(tmp_path / "table9.csv", [BFLOAT16, FLOAT16, INT8, INT4, INT2])


def test_the_answer_comes_first_and_every_row_is_told_of(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text, _ = ask(capsys, table, "--max", "memory_peak_GB=24")
    assert code == 0
    assert (
        text
        == """\
Take int4: 4 of 4 rows fit, and of these all others are beaten or worse in quality.

Recommended
  int4  latency 80 [78, 82] ms · peak memory 6 GB · energy per token 1.4 J · average performance 0.58 [0.55, 0.61]

Why not
  bfloat16  beaten by int4: surely in latency, peak memory and energy per token, and it is ahead in no cost
  int8      beaten by int4 and 1 more: surely in latency, peak memory and energy per token, and it is ahead in no cost
  int2      loses 20 points of average performance (15.76 to 24.2 points) against bfloat16

It changes
  when --max memory_peak_GB is < 6: int2
  when --max latency_ms is < 82: int2
  when --max energy_J_per_token is < 1.4: int2

No result
  float16  invalid: disturbed: other processes took 20.0%

Mind
  - average performance: int4 is not told apart from bfloat16, and may be worse by up to 6.24 points.
  - average performance was compared by the rows' own intervals; paired differences (table9-pairs.csv) are surer.
  - memory_peak_GB: without an interval, so figures count as exact.
  - int4: windows of 3 s.
  - one run a row: the spread between runs is unknown, so costs that differ by 5 % or less count as equal.
"""
    )


def test_nothing_fits_says_the_smallest_change_that_would(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text, _ = ask(capsys, table, "--max", "memory_peak_GB=5", "--min", "average_performance=0.5")
    assert code == 3
    assert text.splitlines()[0] == ("Nothing fits. With --max memory_peak_GB=6 instead of 5 (more by 20 %): int4.")
    assert "  int2      average_performance 0.4 [0.37, 0.43] is 20 % under the limit (0.5)\n" in text
    assert "  bfloat16  memory_peak_GB 16 GB is 3.2 times the limit (5)\n" in text
    assert "  With --min average_performance=0.37 instead of 0.5 (less by 26 %): int2.\n" in text


def test_a_budget_within_an_interval_is_too_close_to_call(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text, _ = ask(capsys, table, "--max", "latency_ms=80", "--min", "average_performance=0.5")
    assert code == 4
    assert text.splitlines()[0] == (
        "Not decidable: no row surely fits, and int4 is too close to call "
        "(latency_ms 80 [78, 82] ms is on both sides of the limit, 80)."
    )


def test_what_was_not_measured_fits_no_limit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unmetered = dict(INT4, energy_J_per_token="", not_measured="energy_J_per_token: no sensor")
    path = write(tmp_path / "table9.csv", [dict(BFLOAT16, energy_J_per_token="9"), unmetered])
    code, text, _ = ask(capsys, path, "--max", "energy_J_per_token=3")
    assert code == 4
    assert text.splitlines()[0] == (
        "Not decidable: no row surely fits, and energy_J_per_token was not measured (no sensor)."
    )


def test_several_rows_are_a_set_with_what_each_is_best_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slow = dict(INT4, latency_ms="130", latency_ms_low="128", latency_ms_high="132", memory_peak_GB="6")
    path = write(tmp_path / "table9.csv", [BFLOAT16, slow])
    code, text, _ = ask(capsys, path)
    assert (code, text.splitlines()[0]) == (
        0,
        "2 rows are left, by what counts most: bfloat16 for latency; int4 for peak memory and energy per token.",
    )
    middle = dict(slow, precision="int8", latency_ms="110", latency_ms_low="108", latency_ms_high="112")
    middle |= {"memory_peak_GB": "9", "energy_J_per_token": "1.8"}
    _, text, _ = ask(capsys, write(tmp_path / "table9.csv", [BFLOAT16, slow, middle]))
    assert text.startswith("3 rows are left, by what counts most: bfloat16 for latency; int4 for peak memory and ")
    assert text.splitlines()[0].endswith("; int8, which no other beats.")
    code, text, _ = ask(capsys, path, "--prefer", "latency_ms")
    assert (code, text.splitlines()[0]) == (0, "Take bfloat16: the best in latency_ms of those that nothing beats.")
    assert "int4  bfloat16 is surely better in latency\n" in text


def test_preferences_that_tell_nothing_apart_decide_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    near = dict(BFLOAT16, precision="float16", latency_ms="97", latency_ms_low="96", latency_ms_high="98")
    path = write(tmp_path / "table9.csv", [BFLOAT16, dict(near, memory_peak_GB="17")])
    code, text, _ = ask(capsys, path, "--prefer", "latency_ms,memory_peak_GB", "--margin", "0.1")
    assert (code, text.splitlines()[0]) == (
        4,
        "Not decided between bfloat16 and float16: latency and peak memory cannot tell them apart.",
    )
    code, text, _ = ask(capsys, path, "--prefer", "latency_ms,memory_peak_GB", "--margin", "0.05")
    assert (code, text.splitlines()[0]) == (0, "Take bfloat16: the best in memory_peak_GB of those that nothing beats.")


def test_rows_of_different_cards_are_not_compared_unless_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "table9.csv", [BFLOAT16, dict(INT4, device_id="bb")])
    code, text, _ = ask(capsys, path)
    assert (code, text.splitlines()[0]) == (
        4,
        "Not decidable: no two rows compare, for each differs from the others in device_id; --across-cards compares "
        "cards of one kind.",
    )
    code, text, _ = ask(capsys, path, "--across-cards")
    assert (code, text.splitlines()[0]) == (0, "Take int4: of 2 rows the other is beaten.")
    assert "rows of several cards of one kind are compared" in text


@pytest.mark.parametrize("condition", ["device", "energy_scope", "threads", "software"])
def test_rows_of_different_conditions_are_never_compared(
    condition: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "table9.csv", [BFLOAT16, INT8, {**INT4, condition: "9"}])
    code, text, _ = ask(capsys, path, "--across-cards")
    assert code == 0
    assert text.startswith(f"No single answer, as rows compare only within one {condition}: ")
    assert "beaten by int4" not in text


def test_a_row_that_states_no_condition_goes_with_the_group_it_contradicts_nowhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "table9.csv", [BFLOAT16, INT8, {**INT4, "energy_scope": "", "energy_J_per_token": ""}])
    assert ask(capsys, path)[1].startswith("2 rows are left")
    other = dict(INT2, energy_scope="board")
    path = write(tmp_path / "table9.csv", [BFLOAT16, {**INT4, "energy_scope": "", "energy_J_per_token": ""}, other])
    assert ask(capsys, path)[1].startswith("Not decidable: no two rows compare")


def test_without_quality_models_are_not_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unscored = {f"average_performance{end}": "" for end in ("", "_low", "_high")}
    unscored["not_measured"] = "average_performance: random weights"
    small = dict(INT4, model="S") | unscored
    path = write(tmp_path / "table9.csv", [BFLOAT16 | unscored, INT4 | unscored, small])
    _, text, _ = ask(capsys, path)
    assert text.splitlines()[0] == (
        "No single answer, as rows compare only within one model: model M: M int4; model S: S int4."
    )
    assert "average performance was not measured (random weights): nothing is known of quality." in text


def pairs(tmp_path: Path, *lines: tuple[str, str, str, str, str, str]) -> None:
    """Pairs of average performances against bfloat16: row, value, change, low, high, bound."""
    with open(tmp_path / "table9-pairs.csv", "w", newline="") as stream:
        writer = csv.writer(stream)
        names = ("row", "value", "change", "low", "high", "bound")
        writer.writerow(["table", "baseline", "column", "measure", "baseline_value", *names])
        for cells in lines:
            writer.writerow(["table9", "M bfloat16", "average_performance", "difference", "0.6", *cells])


def test_paired_differences_count_before_the_rows_own_intervals(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs(
        tmp_path,
        ("M int4", "0.58", "-0.02", "-0.025", "-0.015", ""),
        ("M int8", "0.59", "-0.01", "-0.02", "-0.005", ""),
    )
    code, text, _ = ask(capsys, table)
    assert code == 0
    assert text.splitlines()[0] == "Take bfloat16: of 4 rows all others are worse in quality."
    assert "int4  loses 2 points of average performance (1.5 to 2.5 points) against bfloat16" in " ".join(
        text.split(" ")
    )
    assert "-pairs.csv" not in text
    assert ask(capsys, table, "--quality-loss", "2.5")[1].startswith("Take int4")
    assert ask(capsys, table, "--quality-loss", "2.4")[1].startswith("Take bfloat16")


def test_an_equal_score_is_no_certainty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "table9.csv", [BFLOAT16, dict(INT4, average_performance="0.6")])
    pairs(tmp_path, ("M int4", "0.6", "0", "", "", "0.015"))
    _, text, _ = ask(capsys, path, "--explain", "bfloat16")
    assert "bfloat16: beaten\n" in text
    _, text, _ = ask(capsys, path, "--json")
    rows = {row["name"]: row for row in json.loads(text)["scopes"][0]["rows"]}
    loss = rows["int4"]["loss"]
    assert (loss["value"], loss["low"], loss["high"], loss["paired"]) == (0.0, -1.5, 1.5, True)


def test_json_says_the_same_and_is_as_its_schema_says(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options in (
        (),
        ("--max", "memory_peak_GB=24", "--prefer", "latency_ms"),
        ("--max", "memory_peak_GB=1"),
        ("--max", "latency_ms=80"),
        ("--min", "average_performance=0.9", "--quality-loss", "1"),
    ):
        code, text, _ = ask(capsys, table, *options, "--json")
        content = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
        jsonschema.validate(content, SCHEMA, cls=jsonschema.Draft202012Validator)
        words = ask(capsys, table, *options)[1]
        assert content["exit_code"] == code
        assert words.startswith(content["answer"] + "\n")
        for scope in content["scopes"]:
            for row in scope["rows"]:
                assert row["why_not"] is None or row["why_not"] in words
            for point in scope["breakpoints"]:
                assert f"when --{point['kind']} {point['column']} is {point['sign']} {point['bound']:g}" in words
        assert [row["status"] for row in content["no_result"]] == ["invalid"]
        for caveat in content["caveats"]:
            assert caveat["text"] in words


def test_every_key_of_the_schema_is_described() -> None:
    def undescribed(node: dict, path: str) -> list[str]:
        found = []
        for key, value in node.get("properties", {}).items():
            inner = value.get("items", value)
            if not any("description" in part for part in (value, inner)) and value != {"type": "string"}:
                found.append(f"{path}.{key}")
            found += undescribed(inner, f"{path}.{key}")
        return found

    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert undescribed(SCHEMA, "") == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--max", "latncy_ms=3"], "has no column 'latncy_ms'; did you mean 'latency_ms'?"),
        (["--max", "LATENCY_MS=3"], "has no column 'LATENCY_MS'; did you mean 'latency_ms'?"),
        (["--prefer", "memory_peak_gb"], "--prefer: "),
        (["--max", "latency_ms"], "write a column, = and a number"),
        (["--max", "latency_ms=fast"], "'fast' is no finite number"),
        (["--max", "latency_ms=nan"], "'nan' is no finite number"),
        (["--min", "latency_ms=3"], "of latency_ms less is better, and a limit keeps out what is worse; write --max"),
        (["--max", "average_performance=1"], "of average_performance more is better"),
        (["--max", "latency_ms=3", "--max", "latency_ms=4"], "latency_ms has a limit of this kind already"),
        (["--max", "device=3"], "device is a condition and no figure"),
        (["--margin", "1"], "--margin 1: write a share"),
        (["--margin", "-0.1"], "--margin -0.1: write a share"),
        (["--quality-loss", "-1"], "--quality-loss -1: write a number of at least 0"),
        (["--quality-loss", "nan"], "--quality-loss nan"),
        (["--workload", "batch"], "has no such workload; it has its own alone"),
        (["--model", "K"], "--model K: is none of the table's; name one of 'M'"),
        (["--explain", "int5"], "--explain int5: no row has that in its name; did you mean 'int"),
    ],
)
def test_a_mistake_ends_in_one_sentence(
    options: list[str], says: str, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text, error = ask(capsys, table, *options)
    assert (code, text) == (2, "")
    assert says in error
    assert error.count("\n") == 1


def test_a_damaged_file_of_pairs_ends_in_one_sentence(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "table9-pairs.csv").write_text("table,row\n")
    assert "lacks the columns baseline, baseline_value, bound" in ask(capsys, table)[2]
    pairs(tmp_path, ("M int4", "0.58", "much", "", "", ""))
    assert "line 2: one of value, baseline_value, change, low, high, bound is no number" in ask(capsys, table)[2]
    pairs(tmp_path, ("M int4", "0.57", "-0.03", "", "", ""))
    assert "average_performance of M int4 and M bfloat16 is not what" in ask(capsys, table)[2]


def test_another_workload_is_judged_by_its_own_columns(capsys: pytest.CaptureFixture[str]) -> None:
    path = H100 / "table9.csv"
    code, text, _ = ask(capsys, path, "--workload", "generate", "--model", "1.5B", "--max", "latency_ms=2500")
    assert code == 0
    assert text.startswith("Take bfloat16: of 2 rows it alone fits.\n")
    assert "generate_latency_ms 3,055 ms is 22.2 % over the limit (2500)" in text
    assert "float16  workload generate is invalid" in text


def test_the_committed_tables_have_an_answer_or_say_why_not(capsys: pytest.CaptureFixture[str]) -> None:
    first = {}
    for path in sorted(H100.glob("table*.csv")):
        code, text, error = ask(capsys, path, "--json")
        content = json.loads(text)
        jsonschema.validate(content, SCHEMA, cls=jsonschema.Draft202012Validator)
        assert error == ""
        assert "no_quality" in {c["code"] for scope in content["scopes"] for c in scope["caveats"]}
        first[path.stem] = (code, content["answer"])
    assert first["table5"] == (4, "Not decidable: no two rows compare, for each differs from the others in parameters.")
    assert first["table6"] == (
        0,
        "2 rows are left, by what counts most: Mamba for peak memory and energy per token; Qwen2.5 (Transformer), "
        "which no other beats.",
    )
    assert first["table9"][0] == 0 and first["table9"][1].startswith(
        "No single answer, as rows compare only within one"
    )


def test_rows_of_two_models_are_in_no_pair_and_the_caveat_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "table9.csv", [BFLOAT16, dict(INT4, model="S")])
    asked = "average performance was compared by the rows' own intervals"
    assert f"{asked}; paired differences (table9-pairs.csv) are surer." in ask(capsys, path)[1]
    pairs(tmp_path, ("M int4", "0.58", "-0.02", "-0.05", "0.01", ""))
    assert f"{asked}: pairs are of a row and the baseline of its own model." in ask(capsys, path)[1]


def test_pairs_of_all_tables_serve_a_table_without_its_own(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs(tmp_path, ("M int4", "0.58", "-0.02", "-0.025", "-0.015", ""))
    own = tmp_path / "table9-pairs.csv"
    answer = ask(capsys, table)[1]
    lines = own.read_text().splitlines()
    own.rename(tmp_path / "pairs.csv")
    (tmp_path / "pairs.csv").write_text(
        "\n".join([*lines, lines[1].replace("table9", "table16").replace("0.58", "0.1")])
    )
    assert ask(capsys, table)[1] == answer
    assert "own intervals; paired" not in answer
