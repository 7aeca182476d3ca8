"""Models under load from written artifacts, their cells against numbers worked out by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from effllm.assembly.assemble import assemble, write_csv
from effllm.decision.query import Query
from effllm.decision.recommend import recommend
from effllm.decision.rows import read_table
from effllm.errors import CellFailure, UserError
from effllm.study import parse_study
from effllm.tables.descriptions import DESCRIPTIONS
from tests.unit.tables.conftest import DEVICE, TELEMETRY, Study

FIXED = {"kind": "fixed", "tokens": 8}
SERVING = {
    "engine": {"kind": "transformers", "num_blocks": 64, "max_batch_tokens": 64},
    "load": {"arrivals": {"kind": "gamma", "burstiness": 0.5}, "prompt_tokens": FIXED, "output_tokens": FIXED},
    "saturation": {"concurrency": 2, "maximum_concurrency": 4}, "fractions": [0.5, 0.9], "requests": 100,
}  # fmt: skip
TABLE = {
    "models": ["llama-1m"], "precisions": ["bfloat16", "int4"], "benchmarks": ["adjacent-swap"], "serving": "chat",
    "slo": {"ttft_ms": 100, "share": 0.9},
}  # fmt: skip
NONE = {"value_ms": None, "low_ms": None, "high_ms": None}
FEW = {**NONE, "reasons": dict.fromkeys(NONE, "a percentile of 99 needs 100 requests, of which 40 tell of it")}
ENGINE = {
    "cache_mean_fraction": 0.25, "cache_peak_fraction": 0.5, "running_mean": 3.5, "running_peak": 8, "waiting_peak": 2,
    "preemptions": None, "reasons": {"preemptions": "the engine does not say"},
}  # fmt: skip
ENERGY = ("energy_j_per_output_token", "energy_above_idle_j_per_output_token")


def _percentiles(median_ms: float) -> dict[str, Any]:
    p50 = {"value_ms": median_ms, "low_ms": 0.8 * median_ms, "high_ms": 1.5 * median_ms, "reasons": {}}
    return {"p50": p50, "p90": p50 | {"value_ms": 2 * median_ms, "high_ms": 3 * median_ms}, "p99": FEW}


def _load(fraction: float | None, rate: float | None, median_ms: float, **changes: Any) -> dict[str, Any]:
    figures = {"requests": 40, "completed": 40, "duration_s": 20.0, "requests_per_s": 2.0, "input_tokens_per_s": 16.0}
    latencies = {name: _percentiles(median_ms) for name in ("ttft", "tpot", "itl", "e2e")}
    return {
        "status": "ok", "reason": None, "findings": [], "fraction": fraction, "requests_per_s": rate,
        "concurrency": None if rate else 4, "warmup_requests": 20, "errors": {},
        "figures": figures | latencies | {"output_tokens_per_s": 16.5}, "window_output_tokens": 320,
        "roofline": {"decode_bytes_per_step": 1e9, "decode_mbu": 0.4, "reasons": {}},
        "dispatch_lag_p99_ms": 1.5, "client_cpu_fraction": 0.1, "engine": ENGINE, "telemetry": TELEMETRY,
        "energy": {**dict.fromkeys(ENERGY), "reasons": dict.fromkeys(ENERGY, "no sensor; none")},
    } | changes  # fmt: skip


def _content(loads: dict[str, Any], saturated: float | None = 10.0) -> dict[str, Any]:
    return {
        "device": DEVICE, "cpus_usable": 2, "threads": 2, "protocol": {}, "idle": TELEMETRY, "saturation": [],
        "engine": {
            "kind": "transformers", "version": "5.23.0", "device": "cpu", "dtype": "bfloat16", "flags": {},
            "in_process": True,
        },
        "greedy": {"against": "generate", "requests": 8, "identical": 7, "first_identical": 8},
        "saturated_requests_per_s": saturated, "loads": loads,
    }  # fmt: skip


def _requests(within: int) -> dict[str, list[float]]:
    """40 requests, of which so many meet the objective, the last one first."""
    ttft = [150.0 if index >= within else 50.0 for index in range(40)]
    return {"ttft_ms": ttft, "tpot_ms": [1.0] * 40, "e2e_ms": [200.0] * 40}


LOADS = {"saturated": _load(None, None, 90), "0.5": _load(0.5, 5.0, 20), "0.9": _load(0.9, 9.0, 60)}
REQUESTS = {"saturated": _requests(0), "0.5": _requests(40), "0.9": _requests(20)}


@pytest.fixture
def plain(micro: dict[str, Any]) -> dict[str, Any]:
    return micro | {"serving": {"chat": SERVING}, "tables": {"serving": TABLE, "table16": micro["tables"]["table16"]}}


@pytest.fixture
def served(plain: dict[str, Any], tmp_path: Path) -> Study:
    study = Study(plain, tmp_path)
    study.complete()
    for precision in ("bfloat16", "int4"):
        study.write("serve", f"llama-1m.{precision}.chat", "serving.json", _content(LOADS), requests=REQUESTS)
    return study


def test_a_row_for_each_load_and_precision(served: Study) -> None:
    rows = served.rows("serving")
    names = [(row["served"], row["precision"]) for row in rows]
    assert names == [
        (f"Llama-1M at {load}", precision)
        for load in ("saturation", "50 %", "90 %")
        for precision in ("bfloat16", "int4")
    ]
    header = list(rows[0])
    assert header[-3:] == ["status", "reason", "not_measured"]
    assert list(DESCRIPTIONS["serving"].columns(header)) == header


def test_figures_of_a_row(served: Study) -> None:
    row = served.rows("serving")[5]
    assert (row["average_performance"], row["average_performance_low"]) == (0.6, 0.5)
    assert (row["requests_per_s"], row["input_tokens_per_s"], row["output_tokens_per_s"]) == (2.0, 16.0, 16.5)
    assert (row["ttft_ms_p50"], row["ttft_ms_p50_low"], row["ttft_ms_p50_high"]) == (60, 48, 90)
    assert (row["ttft_ms_p90"], row["e2e_ms_p90_high"], row["ttft_ms_p99"]) == (120, 180, None)
    assert "ttft_ms_p99, ttft_ms_p99_low, ttft_ms_p99_high, tpot_ms_p99" in row["not_measured"]
    # 20 of 40 requests within 100 ms, in 20 s.
    assert (row["goodput_requests_per_s"], row["slo_share"]) == (1.0, 0.5)
    assert row["slo_share_low"] < 0.5 < row["slo_share_high"]
    # From all at 5 requests/s to half of them at 9.
    assert row["max_rate_per_s"] == pytest.approx(np.interp(-0.9, [-1.0, -0.5], [5.0, 9.0]))
    assert row["max_rate_between"] == "5 and 9"
    assert 5 < row["max_rate_per_s_low"] < row["max_rate_per_s"] < row["max_rate_per_s_high"]
    assert {each["max_rate_per_s"] for each in served.rows("serving")} == {row["max_rate_per_s"]}
    assert (row["offered_requests_per_s"], row["concurrency"], row["saturated_requests_per_s"]) == (9.0, None, 10.0)
    assert (row["cache_mean"], row["cache_peak"], row["preemptions"]) == (0.25, 0.5, None)
    assert "preemptions: the engine does not say" in row["not_measured"]
    assert row["decode_mbu"] == 0.4
    assert (row["arrivals"], row["prompt_tokens"], row["slo"]) == (
        "gamma (burstiness 0.5)", "8", "ttft 100 ms for 90 %",
    )  # fmt: skip
    assert (row["engine"], row["greedy_identical"], row["load"]) == ("transformers 5.23.0", "7 of 8", "90 %")
    assert (row["AMU_GB"], row["memory_peak_GB"], row["energy_J_per_output_token"]) == (0.5, 0.6, None)


def test_loads_that_do_not_count_move_no_largest_rate(served: Study) -> None:
    finding = {"rule": "request_errors", "severity": "error", "message": "3 of 40 requests failed"}
    failed = _load(0.9, 9.0, 60, status="invalid", reason=finding["message"], findings=[finding], figures=None)
    content = _content(LOADS | {"0.9": failed})
    served.write("serve", "llama-1m.int4.chat", "serving.json", content, requests=REQUESTS)
    row = served.rows("serving")[5]
    assert (row["status"], row["reason"], row["ttft_ms_p50"]) == ("invalid", "3 of 40 requests failed", None)
    assert row["goodput_requests_per_s"] is None
    assert "up to the highest, 5 requests/s, 90 % of the requests meet it" in row["not_measured"]
    first = served.rows("validity")[0]
    assert (first["stage"], first["id"], first["rule"]) == ("serve", "llama-1m.int4.chat", "0.9/request_errors")


def test_a_model_that_could_not_be_served_keeps_its_rows(served: Study) -> None:
    failure = CellFailure("oom", "out of memory")
    served.write("serve", "llama-1m.int4.chat", "serving.json", {}, failure=failure)
    rows = [row for row in served.rows("serving") if row["precision"] == "int4"]
    assert [(row["status"], row["reason"]) for row in rows] == [("oom", "serve: out of memory")] * 3
    assert rows[0]["average_performance"] == 0.6 and rows[0]["max_rate_per_s"] is None
    assert "serve is oom: out of memory" in rows[0]["not_measured"]


def test_a_closed_loop_has_no_largest_rate(plain: dict[str, Any], tmp_path: Path) -> None:
    loop = {key: value for key, value in SERVING.items() if key not in ("saturation", "fractions")}
    loop["load"] = loop["load"] | {"arrivals": {"kind": "closed_loop", "concurrency": 4}}
    table = {key: value for key, value in TABLE.items() if key not in ("slo", "benchmarks")}
    study = Study(plain | {"serving": {"chat": loop}, "tables": {"serving": table}}, tmp_path)
    study.complete()
    for precision in ("bfloat16", "int4"):
        content = _content({"closed": _load(None, None, 90)}, None)
        served = {"closed": _requests(40)}
        study.write("serve", f"llama-1m.{precision}.chat", "serving.json", content, requests=served)
    row = study.rows("serving")[0]
    assert (row["served"], row["arrivals"]) == ("Llama-1M at closed loop", "closed loop (concurrency 4)")
    assert "the table has no slo" in row["not_measured"] and row["average_performance"] is None
    study = Study(study.graph.study.plain() | {"tables": {"serving": table | {"slo": {"ttft_ms": 9}}}}, tmp_path)
    assert (
        "max_rate_between, saturated_requests_per_s: a closed loop has no rate, nor has a trace that is replayed"
        in study.rows("serving")[0]["not_measured"]
    )


def test_pairs_are_of_one_load(served: Study) -> None:
    rows = served.rows("serving-pairs")
    assert {(row["row"], row["baseline"]) for row in rows} == {
        (f"Llama-1M at {load} int4", f"Llama-1M at {load} bfloat16") for load in ("saturation", "50 %", "90 %")
    }
    by_column = {row["column"]: row for row in rows if row["row"].startswith("Llama-1M at 90 %")}
    assert by_column["ttft_ms_p50"]["change"] == 1.0
    quality = by_column["average_performance"]
    assert (quality["value"], quality["baseline_value"]) == (0.6, 0.8)


def test_recommendations_compare_rows_of_one_load(served: Study, tmp_path: Path) -> None:
    path = tmp_path / "serving.csv"
    frame = assemble("serving", served.graph.table_spec("serving"), served.graph.table_parents("serving"))
    write_csv(frame, path)
    found = recommend(read_table(path), Query())
    names = [[judged.row.name for judged in answer.rows] for answer in found.scopes]
    assert names == [
        [f"Llama-1M at {load} {precision}" for precision in ("bfloat16", "int4")]
        for load in ("saturation", "50 %", "90 %")
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"serving": "chats"}, r"tables\.serving\.serving: 'chats' does not exist; did you mean 'chat'"),
        ({"slo": {}}, r"slo: .*it has no limit: state ttft_ms"),
        ({"slo": {"ttft_ms": 1, "share": 0}}, r"slo\.share"),
    ],
)
def test_tables_of_what_the_study_does_not_have_are_refused(
    plain: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        parse_study(plain | {"tables": {"serving": TABLE | changes}}, "test")
