"""The embedded study, from nothing to its tables; then what a reader relies on.

On three of its benchmarks: one of its models in two precisions for `make test`, two, one of which has fused layers, in
three precisions for `make test-all`. The others take minutes, and the tests of stage quantize build them.
"""

import copy
import itertools
import json
import math
from typing import Any

import polars as pl
import pytest

from effllm.assembly.assemble import assemble
from effllm.runtime.artifact import MANIFEST, Artifact
from effllm.stages.graph import Graph
from effllm.study import parse_study
from tests.workflow.conftest import Workdir

TARGETS = ["results/table9.csv", "results/table16.csv"]
BENCHMARKS = ["word-order", "word-substitution", "perplexity"]
ONE_MODEL = {"models": ["llama-1m"], "precisions": ["bfloat16", "int4"], "benchmarks": BENCHMARKS}
TWO_MODELS = {
    "models": ["llama-1m", "phi3-1m"],
    "precisions": ["bfloat16", "float16", "int4"],
    "benchmarks": BENCHMARKS,
}
PAPER_COLUMNS = ["model", "precision", "average_performance", "AL_sum_ms", "IT_tokens_per_s", "AMU_GB", "AEC_W", "MCR"]


class Embedded:
    """The tables of precisions of a study, built below the directory of a working directory."""

    def __init__(self, workdir: Workdir):
        self.workdir = workdir
        self.path = workdir.path
        self.graph = Graph(parse_study(workdir.study, "study"))
        self.table9 = self.graph.study.tables.table9

    def content(self, stage: str, id: str, name: str) -> dict[str, Any]:
        """A JSON file of an artifact, all of which is compared with its digests."""
        artifact = Artifact.open(self.path / self.graph.manifest(stage, id))
        artifact.verify()
        return artifact.json(name)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(ONE_MODEL, marks=pytest.mark.subset, id="one-model"),
        pytest.param(TWO_MODELS, marks=pytest.mark.slow, id="two-models"),
    ],
)
def study(
    request: pytest.FixtureRequest, tiny_text: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Embedded:
    """A directory in which the workflow has built the tables of precisions from nothing."""
    study = copy.deepcopy(tiny_text)
    for table in ("table9", "table16"):
        study["tables"][table] |= request.param
    # Enough for the models to beat chance, and for intervals.
    for model in request.param["models"]:
        study["pretraining"][model]["max_steps"] = 400
    study["inference"]["repeats"] = 5
    workdir = Workdir(tmp_path_factory.mktemp("embedded"), study)
    workdir.snakemake(*TARGETS)
    return Embedded(workdir)


@pytest.fixture(scope="module")
def table9(study: Embedded) -> pl.DataFrame:
    return pl.read_csv(study.path / "results" / "table9.csv")


def test_the_second_run_executes_nothing(study: Embedded) -> None:
    output = study.workdir.snakemake(*TARGETS)
    assert "Nothing to be done" in output.stdout + output.stderr


def _findings(study: Embedded) -> pl.DataFrame:
    """What the plausibility rules find behind these tables; validity.csv would build the study's others too."""
    tables = {name: study.workdir.study["tables"][name] for name in ("table9", "table16")}
    graph = Graph(parse_study(study.workdir.study | {"tables": tables}, "study"), str(study.path / "results"))
    return assemble("validity", graph.table_spec("validity"), graph.table_parents("validity"))


def test_a_row_for_every_model_and_precision_and_none_failed(study: Embedded, table9: pl.DataFrame) -> None:
    labels = [study.graph.study.models[model].label for model in study.table9.models]
    assert table9.select("model", "precision").rows() == list(itertools.product(labels, study.table9.precisions))
    # A busy machine may make a measurement invalid, with its reason; a cell that failed would be a fault of ours.
    for row in table9.iter_rows(named=True):
        assert row["status"] == "ok" or (row["status"] == "invalid" and row["reason"]), row
    errors = _findings(study).filter(pl.col("severity") == "error")
    noise = {"interval", "instrument", "disturbed"}
    assert {rule.rpartition("/")[2] for rule in errors["rule"]} <= noise, errors.rows()


def test_rows_say_that_their_windows_are_short(table9: pl.DataFrame) -> None:
    assert table9["warnings"].str.contains("windows of 0.2 s, short for power figures").all()


def test_the_papers_columns_come_first(table9: pl.DataFrame) -> None:
    assert table9.columns[: len(PAPER_COLUMNS)] == PAPER_COLUMNS


def test_no_cell_is_empty_without_a_reason(study: Embedded) -> None:
    for name in ("table9", "table16"):
        frame = pl.read_csv(study.path / "results" / f"{name}.csv")
        for row in frame.iter_rows(named=True):
            empty = {c for c, value in row.items() if value is None and c not in ("reason", "not_measured")}
            groups = [part.partition(": ") for part in (row["not_measured"] or "").split(" | ") if part]
            explained = {column for columns, _, reason in groups if reason for column in columns.split(", ")}
            assert empty == explained


def test_types_and_ranges(table9: pl.DataFrame) -> None:
    for column in ("average_performance", "AMU_fraction", "util_cpu"):
        assert table9[column].is_between(0, 1).all()
    for column in ("AL_sum_ms", "IT_tokens_per_s", "AMU_GB", "latency_ms", "weight_bytes", "mcr_measured", "MCR"):
        assert (table9[column] > 0).all()
    assert (table9["latency_ms_low"] <= table9["latency_ms"]).all()
    assert (table9["latency_ms"] <= table9["latency_ms_high"]).all()
    assert (table9["token_ms_p50"] <= table9["token_ms_p95"]).all()
    assert (table9["memory_peak_GB"] >= table9["AMU_GB"]).all()
    assert table9["weight_bytes"].dtype == pl.Int64


def test_mcr_recomputed_from_the_artifacts(study: Embedded, table9: pl.DataFrame) -> None:
    accuracy = [b for b in study.table9.benchmarks if b != "perplexity"]

    def performance(model: str, precision: str) -> float:
        scores = [study.content("evaluate", f"{model}.{precision}.{b}", "evaluation.json")["score"] for b in accuracy]
        return sum(scores) / len(scores)

    def size(model: str, precision: str) -> int:
        directory = study.path / study.graph.results / "quantize" / f"{model}.{precision}" / "model"
        header = 0
        for path in directory.glob("*.safetensors"):
            header += path.stat().st_size - 8 - int.from_bytes(path.read_bytes()[:8], "little")
        return header

    rows = iter(table9.iter_rows(named=True))
    for model, precision in itertools.product(study.table9.models, study.table9.precisions):
        row = next(rows)
        ratio = performance(model, precision) / performance(model, "bfloat16")
        bits = {"int4": 4, "nf4": 4, "int8": 8}.get(precision, 16)
        assert row["average_performance"] == pytest.approx(performance(model, precision), rel=1e-5)
        assert row["mcr_nominal"] == pytest.approx(16 / bits * ratio, rel=1e-5)
        assert row["MCR"] == row["mcr_nominal"]
        assert row["mcr_measured"] == pytest.approx(size(model, "bfloat16") / size(model, precision) * ratio, rel=1e-5)


def test_quantized_layers_are_as_small_as_their_bits_make_them(table9: pl.DataFrame) -> None:
    packed = {"int4": 3.0, "nf4": 3.0, "int8": 1.8}
    for precision, least in packed.items():
        assert (table9.filter(pl.col("precision") == precision)["quantized_layers_compression"] >= least).all()
    cast = table9.filter(~pl.col("precision").is_in(list(packed)))
    assert cast["quantized_layers_bytes"].null_count() == cast.height


def test_bfloat16_models_beat_chance_on_at_least_two_benchmarks(study: Embedded, table9: pl.DataFrame) -> None:
    for row in table9.filter(pl.col("precision") == "bfloat16").iter_rows(named=True):
        accuracy = [b for b in study.table9.benchmarks if b != "perplexity"]
        clear = [b for b in accuracy if row[f"{b}_low"] > row[f"{b}_chance"]]
        assert len(clear) >= 2, row


def test_perplexity_is_far_below_uniform_bytes(table9: pl.DataFrame) -> None:
    assert (table9["perplexity_score"] < 3).all()


def test_divergence_from_bfloat16_tells_precisions_apart(table9: pl.DataFrame) -> None:
    kl = {precision: table9.filter(pl.col("precision") == precision) for precision in ("bfloat16", "float16", "int4")}
    assert kl["bfloat16"]["perplexity_kl_nats"].null_count() == kl["bfloat16"].height
    assert (kl["float16"]["perplexity_kl_nats_low"] > 0).all()
    # One model is built without float16.
    highest = kl["float16"]["perplexity_kl_nats_high"].max() or 0.0
    assert (kl["int4"]["perplexity_kl_nats_low"] > 10 * highest).all()


def test_what_the_machine_lacks_is_null_with_a_reason(table9: pl.DataFrame) -> None:
    for row in table9.iter_rows(named=True):
        if row["AEC_W"] is None:
            assert "AEC_W" in row["not_measured"]
        else:
            assert row["energy_source"] and row["AEC_W"] > 0


def test_latency_sums_the_benchmarks_mean_request_times(study: Embedded, table9: pl.DataFrame) -> None:
    row = table9.row(0, named=True)
    variant = f"{study.table9.models[0]}.{study.table9.precisions[0]}"
    costs = [study.content("evaluate", f"{variant}.{b}", "evaluation.json")["cost"] for b in study.table9.benchmarks]
    total = sum(1000 * cost["model_seconds"] / cost["requests"] for cost in costs)
    assert row["AL_sum_ms"] == pytest.approx(total, rel=1e-5)


def test_table16_agrees_with_table9(study: Embedded, table9: pl.DataFrame) -> None:
    table16 = pl.read_csv(study.path / "results" / "table16.csv")
    assert table16["mean"].to_list() == table9["average_performance"].to_list()
    for benchmark in study.table9.benchmarks:
        label = study.graph.study.benchmarks[benchmark].label
        assert table16[label].to_list() == table9[f"{benchmark}_score"].to_list()


def test_every_artifact_is_whole_and_names_its_parents(study: Embedded) -> None:
    manifests = {path: Artifact.open(path) for path in (study.path / "results").glob(f"*/*/{MANIFEST}")}
    models, precisions, benchmarks = (
        len(names) for names in (study.table9.models, study.table9.precisions, study.table9.benchmarks)
    )
    # Corpus, tokenizer and tokens; benchmarks, and what each shares with the corpus; of each model its run; of each
    # precision weights, scores and a profile.
    assert len(manifests) == 3 + 2 * benchmarks + models * (1 + precisions * (1 + benchmarks + 1))
    digests = {(a.manifest.stage, a.manifest.id): a.sha256 for a in manifests.values()}
    for artifact in manifests.values():
        artifact.verify()
        for parent in artifact.manifest.parents.values():
            assert digests[parent.stage, parent.id] == parent.sha256
        provenance = artifact.json("provenance.json")
        assert provenance["packages"]["torch"] and provenance["start"] <= provenance["end"]


def test_held_out_text_is_in_no_training_part(study: Embedded) -> None:
    directory = study.path / "results" / "corpus" / "python-docs"
    train = set(pl.read_parquet(directory / "train-*.parquet")["text"])
    held_out = set(pl.read_parquet(directory / "held_out-*.parquet")["text"])
    assert held_out and not train & held_out


def test_the_models_have_learned(study: Embedded) -> None:
    for run in (study.graph.study.models[model].source.run for model in study.table9.models):
        result = study.content("pretrain", run, "training.json")
        assert result["held_out_perplexity"] < 0.15 * 2048
        assert result["held_out_loss"] == pytest.approx(math.log(result["held_out_perplexity"]))
        curve = json.loads((study.path / f"results/pretrain/{run}/records/loss_curve.json").read_text())["curve"]
        assert curve[-1]["step"] == study.graph.study.pretraining[run].max_steps
