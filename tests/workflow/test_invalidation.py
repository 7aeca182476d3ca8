"""What reruns after an edit is exactly what the edit concerns: no node too many, none missed.

The tables of cases are planned by Snakemake, over the paper's study with stand-ins for its results and over results of
the cut-down study that were really built. What is planned is what runs, which a few real runs hold to.
"""

import copy
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from effllm.planning.nodes import nodes_behind, targets_of
from effllm.planning.state import states_of
from effllm.planning.verify import verify
from effllm.study import Graph, parse_study
from effllm.study.inheritance import read_study
from tests.conftest import REPOSITORY
from tests.workflow.conftest import Change, Workdir, pending, run_many

Study = dict[str, Any]
# What is made from every table of a study.
FROM_TABLES = {"pairs.csv"}
PRECISION_TABLES = {"table9.csv", "table16.csv", "validity.csv"} | FROM_TABLES
PAPER = read_study(REPOSITORY / "config" / "paper.yaml")
MODELS, PRECISIONS, BENCHMARKS = (PAPER["tables"]["table9"][key] for key in ("models", "precisions", "benchmarks"))
TINY = ("llama-1m", "qwen2-1m"), ("bfloat16", "int4"), ("adjacent-swap", "perplexity")


def evaluations(models: Iterable[str], precisions: Iterable[str], benchmarks: Iterable[str]) -> set[str]:
    """Every score of these."""
    return {f"evaluate/{'.'.join(names)}" for names in product(models, precisions, benchmarks)}


def variants(models: Iterable[str], precisions: Iterable[str], benchmarks: Iterable[str]) -> set[str]:
    """Everything that is made of these models in these precisions."""
    own = {f"{stage}/{model}.{p}" for stage, model, p in product(("quantize", "profile"), models, precisions)}
    return own | evaluations(models, precisions, benchmarks)


def put(path: str, value: Any) -> Callable[[Study], None]:
    """An edit: set the key at a path of keys joined by slashes; a function is applied to what is there."""

    def edit(study: Study) -> None:
        *parents, last = path.split("/")
        for key in parents:
            study = study.setdefault(key, {})
        study[last] = value(study[last]) if callable(value) else value

    return edit


def together(*edits: Callable[[Study], None]) -> Callable[[Study], None]:
    """Several edits as one."""
    return lambda study: [edit(study) for edit in edits]


def listed(key: str, *ids: str) -> Callable[[Study], None]:
    """An edit: add ids to Tables 9 and 16."""
    return together(*(put(f"tables/{table}/{key}", lambda old: [*old, *ids]) for table in ("table9", "table16")))


def unlisted(key: str, id: str, *tables: str) -> Callable[[Study], None]:
    """An edit: take an id out of tables."""
    return together(*(put(f"tables/{t}/{key}", lambda old: [other for other in old if other != id]) for t in tables))


def swapped(section: str, first: str, second: str) -> Callable[[Study], None]:
    """An edit: exchange the values of two keys."""

    def edit(study: Study) -> None:
        for key in section.split("/"):
            study = study[key]
        study[first], study[second] = study[second], study[first]

    return edit


SMALL_GPTQ = {"kind": "gptq", "bits": 8, "group_size": 128, "act_order": False, "damping": 0.05}
CALIBRATION = {"corpus": "fineweb-edu-calibration", "samples": 64, "sequence_length": 2048}
HUB_MODEL = {"source": {"kind": "hub", "repo": "a/b", "revision": "0" * 40}}
TRAINED_ON_FINEWEB = {f"pretrain/{run}" for run in PAPER["pretraining"]}
TRAINING_TABLES = {f"{table}.csv" for table, rows in PAPER["tables"].items() if "rows" in rows}
RESOURCES = ["--set-threads", "evaluate=2", "pretrain=2", "--set-resources", "evaluate:mem_mb=1234"]
PARTITION = ["--default-resources", "slurm_partition=elsewhere", "slurm_account=other", "runtime=7"]

PAPER_CASES: dict[str, tuple[Change, set[str]]] = {
    "nothing": (Change(), set()),
    "a comment": (Change(comment="# A comment.\n"), set()),
    "key order": (Change(sorts_keys=True), set()),
    "the description": (Change(put("description", "Another sentence.")), set()),
    "a default written out": (Change(put("precisions/int4/symmetric", True)), set()),
    "threads and memory": (Change(options=RESOURCES), set()),
    "partition, account and run time": (Change(options=PARTITION), set()),
    "another profile": (Change(profile=["--profile", "profiles/gh200"]), set()),
    "an entry that no table lists": (Change(put("models/new", HUB_MODEL)), set()),
    "one model's precision settings": (
        Change(put("models/phi-4/precisions", {"int4": {"group_size": 64}})),
        variants(["phi-4"], ["int4"], BENCHMARKS) | PRECISION_TABLES,
    ),
    "a precision's settings": (
        Change(put("precisions/int4/damping", 0.1)),
        variants(MODELS, ["int4"], BENCHMARKS) | PRECISION_TABLES,
    ),
    "calibration samples": (
        Change(put("precisions/int4/calibration/samples", 128)),
        variants(MODELS, ["int4"], BENCHMARKS) | PRECISION_TABLES,
    ),
    "two numbers swapped": (
        Change(swapped("precisions/int4/calibration", "samples", "sequence_length")),
        variants(MODELS, ["int4"], BENCHMARKS) | PRECISION_TABLES,
    ),
    "the calibration corpus's seed": (
        Change(put("corpora/fineweb-edu-calibration/seed", 1)),
        {"corpus/fineweb-edu-calibration"} | variants(MODELS, ["int4"], BENCHMARKS) | PRECISION_TABLES,
    ),
    "a precision added": (
        Change(
            together(put("precisions/int8", {**SMALL_GPTQ, "calibration": CALIBRATION}), listed("precisions", "int8"))
        ),
        variants(MODELS, ["int8"], BENCHMARKS) | PRECISION_TABLES,
    ),
    "a benchmark added": (
        Change(
            together(
                put("benchmarks/again", {**PAPER["benchmarks"]["musr"], "limit": 10, "label": "Again"}),
                listed("benchmarks", "again"),
            )
        ),
        {"benchmark/again"} | evaluations(MODELS, PRECISIONS, ["again"]) | PRECISION_TABLES,
    ),
    "a benchmark's data": (
        Change(put("benchmarks/ifeval/revision", "0" * 40)),
        {"benchmark/ifeval"} | evaluations(MODELS, PRECISIONS, ["ifeval"]) | PRECISION_TABLES,
    ),
    "a benchmark's label": (
        Change(put("benchmarks/ifeval/label", "Another")),
        {"table9.csv", "table16.csv"} | FROM_TABLES,
    ),
    "a model's label": (Change(put("models/phi-4/label", "Another")), {"table9.csv", "table16.csv"} | FROM_TABLES),
    "a model's revision": (
        Change(put("models/phi-4/source/revision", "0" * 40)),
        {"model/phi-4"} | variants(["phi-4"], PRECISIONS, BENCHMARKS) | PRECISION_TABLES,
    ),
    "a model added": (
        Change(together(put("models/new", HUB_MODEL), listed("models", "new"))),
        {"model/new"} | variants(["new"], PRECISIONS, BENCHMARKS) | PRECISION_TABLES,
    ),
    "a row removed": (Change(unlisted("models", "yi-34b", "table9", "table16")), PRECISION_TABLES),
    "a column removed": (
        Change(unlisted("benchmarks", "musr", "table16")),
        {"table16.csv", "validity.csv"} | FROM_TABLES,
    ),
    "the inference protocol": (
        Change(put("inference/repeats", 7)),
        {f"profile/{model}.{precision}" for model, precision in product(MODELS, PRECISIONS)}
        | {"table9.csv", "validity.csv"}
        | FROM_TABLES,
    ),
    "the evaluation protocol": (
        Change(put("evaluation/batch_size", 4)),
        evaluations(MODELS, PRECISIONS, BENCHMARKS) | PRECISION_TABLES,
    ),
    "an optimizer setting of one run": (
        Change(put("pretraining/mla-0.5b/optimizer/weight_decay", 0.2)),
        {"pretrain/mla-0.5b", "table3.csv", "validity.csv"} | FROM_TABLES,
    ),
    "a run that three tables read": (
        Change(put("pretraining/gqa-1.5b/seed", 7)),
        {"pretrain/gqa-1.5b", "table3.csv", "table4.csv", "table5.csv", "validity.csv"} | FROM_TABLES,
    ),
    "the words of a row": (
        Change(put("tables/table5/rows", lambda rows: [{**rows[0], "method": "Plain"}, *rows[1:]])),
        {"table5.csv"} | FROM_TABLES,
    ),
}

TINY_CASES: dict[str, tuple[Change, set[str]]] = {
    "nothing": (Change(), set()),
    "the corpus's seed": (
        Change(put("corpora/python-docs/seed", 1)),
        {"corpus/python-docs", "tokenizer/python-docs-2k", "tokens/python-docs"}
        | {f"{stage}/{id}" for stage, ids in (("pretrain", TINY[0]), ("benchmark", TINY[2])) for id in ids}
        | variants(*TINY)
        | PRECISION_TABLES,
    ),
    "the tokenizer's size": (
        Change(put("tokenizers/python-docs-2k/vocab_size", 1024)),
        {"tokenizer/python-docs-2k", "tokens/python-docs", "pretrain/llama-1m", "pretrain/qwen2-1m"}
        | variants(*TINY)
        | PRECISION_TABLES,
    ),
    "an optimizer setting": (
        Change(put("pretraining/llama-1m/optimizer/beta2", 0.9)),
        {"pretrain/llama-1m"} | variants(["llama-1m"], *TINY[1:]) | PRECISION_TABLES,
    ),
    "two numbers swapped": (
        Change(swapped("pretraining/llama-1m/optimizer", "learning_rate", "weight_decay")),
        {"pretrain/llama-1m"} | variants(["llama-1m"], *TINY[1:]) | PRECISION_TABLES,
    ),
    "one model's precision settings": (
        Change(put("models/llama-1m/precisions", {"int4": {"damping": 0.1}})),
        variants(["llama-1m"], ["int4"], TINY[2]) | PRECISION_TABLES,
    ),
    "a benchmark's items": (
        Change(put("benchmarks/perplexity/items", 3)),
        {"benchmark/perplexity"} | evaluations(*TINY[:2], ["perplexity"]) | PRECISION_TABLES,
    ),
    "a model of a run that is there": (
        Change(
            together(
                put("models/again", {"source": {"kind": "pretrained", "run": "llama-1m"}}), listed("models", "again")
            )
        ),
        variants(["again"], *TINY[1:]) | PRECISION_TABLES,
    ),
}


@pytest.fixture(scope="module")
def paper_plans(paper: Workdir) -> dict[str, set[str]]:
    """What Snakemake would run after each edit of the paper's study."""
    changes = [change for change, _ in PAPER_CASES.values()]
    return dict(zip(PAPER_CASES, paper.planned_after(changes), strict=True))


@pytest.fixture(scope="module")
def tiny_plans(finished: Workdir) -> dict[str, set[str]]:
    """What Snakemake would run after each edit of the cut-down study."""
    changes = [change for change, _ in TINY_CASES.values()]
    return dict(zip(TINY_CASES, finished.planned_after(changes), strict=True))


@pytest.mark.parametrize("case", PAPER_CASES)
def test_an_edit_of_the_papers_study_reruns_exactly(case: str, paper_plans: dict[str, set[str]]) -> None:
    assert paper_plans[case] == PAPER_CASES[case][1]


@pytest.mark.parametrize("case", TINY_CASES)
def test_an_edit_of_the_tiny_study_reruns_exactly(case: str, tiny_plans: dict[str, set[str]]) -> None:
    assert tiny_plans[case] == TINY_CASES[case][1]


@pytest.mark.parametrize("case", [name for name, (change, _) in PAPER_CASES.items() if not change.options])
def test_the_plan_names_the_nodes_that_snakemake_runs(
    case: str, paper: Workdir, paper_plans: dict[str, set[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`effllm plan` and `status` decide without Snakemake what stands."""
    monkeypatch.chdir(paper.path)
    planned = _planned_without_snakemake(paper, PAPER_CASES[case][0])
    assert planned == paper_plans[case]


def _planned_without_snakemake(workdir: Workdir, change: Change) -> set[str]:
    """What `effllm plan` would run."""
    study = copy.deepcopy(workdir.study)
    change.edit(study)
    graph = Graph(parse_study(study, "test"))
    wanted = targets_of(graph)
    states = states_of(graph, nodes_behind(graph, wanted), wanted)
    return {name for name, state in states.items() if not state.stands}


def _checkout(directory: Path) -> Path:
    """A copy of the workflow's sources, every file newer than any result."""
    for name in ("effllm", "rules", "workflow_scripts", "profiles", "config"):
        shutil.copytree(REPOSITORY / name, directory / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "Snakefile", directory / "Snakefile")
    for path in directory.rglob("*"):
        os.utime(path)
    return directory


def _planned_by(checkout: Path, workdir: Workdir) -> set[str]:
    line = ["--directory", str(workdir.path), *workdir.arguments("all", options=["--summary"])]
    return pending(run_many([line], checkout)[0])


def test_a_checkout_and_a_change_of_code_rerun_nothing(paper: Workdir, tmp_path: Path) -> None:
    checkout = _checkout(tmp_path)
    for path in [*checkout.glob("effllm/quantization/*.py"), *checkout.glob("rules/*.smk")]:
        path.write_text(path.read_text() + "\n# A comment.\n")
    assert _planned_by(checkout, paper) == set()


def test_a_raised_stage_version_reruns_the_stage_and_what_follows(paper: Workdir, tmp_path: Path) -> None:
    checkout = _checkout(tmp_path)
    stages = checkout / "effllm" / "stages.py"
    raised = stages.read_text().replace('"effllm.profiling.inference", ', '"effllm.profiling.inference", 100 + ')
    assert raised != stages.read_text()
    stages.write_text(raised)
    profiles = {f"profile/{model}.{precision}" for model, precision in product(MODELS, PRECISIONS)}
    assert _planned_by(checkout, paper) == profiles | {"table9.csv", "validity.csv"} | FROM_TABLES


def test_file_times_rerun_nothing(paper: Workdir) -> None:
    manifests = sorted((paper.path / "results").glob("*/*/manifest.json"))
    for age, path in enumerate(reversed(manifests)):
        os.utime(path, (time.time() + age, time.time() + age))
    assert paper.planned() == set()


def test_a_deleted_artifact_is_built_again_only_for_what_runs(paper: Workdir, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that finished work can be deleted to save space; Snakemake and the plan agree."""
    monkeypatch.chdir(paper.path)
    model, scored = (Path(f"results/{node}/manifest.json") for node in ("model/phi-4", "evaluate/phi-4.int4.musr"))
    texts = {path: path.read_text() for path in (model, scored)}
    manifest = str(scored)
    try:
        model.unlink()
        scored.unlink()
        change = Change(put("models/phi-4/precisions", {"int4": {"damping": 0.1}}))
        unchanged, edited = paper.planned_after([Change(), change])
        assert unchanged == set() == _planned_without_snakemake(paper, Change())
        follows = {"model/phi-4"} | variants(["phi-4"], PRECISIONS, BENCHMARKS) | PRECISION_TABLES
        assert edited == follows
        assert _planned_without_snakemake(paper, change) == follows
        assert paper.planned(manifest) == {"evaluate/phi-4.int4.musr"}
    finally:
        for path, text in texts.items():
            path.write_text(text)


def test_a_second_run_executes_nothing(finished: Workdir) -> None:
    result = finished.snakemake("all")
    assert "Nothing to be done" in result.stdout + result.stderr


def test_copied_results_are_used_and_refused_where_they_are_of_another_configuration(
    finished: Workdir, tmp_path: Path
) -> None:
    """Snakemake has no record of what was built elsewhere, and would put it into a table of today's study."""
    shutil.copytree(finished.path / "results", tmp_path / "results")
    copied = Workdir(tmp_path, copy.deepcopy(finished.study))
    (tmp_path / "results" / "table9.csv").unlink()
    assert _built_by_running(copied, "results/table9.csv") == set()
    shutil.rmtree(tmp_path / ".snakemake")
    table = tmp_path / "results" / "table9.csv"
    table.unlink()
    TINY_CASES["one model's precision settings"][0].edit(copied.study)
    copied.write()
    result = copied.snakemake("results/table9.csv", check=False)
    assert result.returncode != 0
    sentence = "quantize/llama-1m.int4: built under another configuration, and Snakemake has no record of it"
    assert sentence in result.stdout + result.stderr
    assert "--forcerun quantize" in result.stdout + result.stderr
    assert not table.exists()
    built = _built_by_running(copied, "results/table9.csv", options=["--forcerun", "quantize"])
    assert "quantize/llama-1m.int4" in built and "quantize/llama-1m.bfloat16" not in built
    assert table.exists()


def test_a_deleted_table_is_rebuilt_and_nothing_before_it(finished: Workdir) -> None:
    (finished.path / "results" / "table9.csv").unlink()
    assert finished.planned() == {"table9.csv"}
    assert _built_by_running(finished, "results/table9.csv") == set()
    assert finished.planned() == set()


@pytest.mark.parametrize("deleted", [["table9"], ["table16", "validity"]])
def test_a_run_of_several_tables_is_resumed(finished: Workdir, deleted: list[str]) -> None:
    """Tables that stand are among the targets of the same run."""
    tables = [f"{path.stem}.csv" for path in (finished.path / "results").glob("*.csv")]
    for names in (["table9", "table16", "validity"], ["all"]):
        for table in deleted:
            (finished.path / "results" / f"{table}.csv").unlink()
        targets = [name if name == "all" else f"results/{name}.csv" for name in names]
        finished.snakemake(*targets)
        assert all((finished.path / "results" / table).exists() for table in tables)
        assert finished.planned() == set()


def test_swapped_artifacts_are_refused_by_the_next_run(finished: Workdir) -> None:
    first, second = (finished.path / "results/quantize" / name for name in ("llama-1m.bfloat16", "llama-1m.int4"))

    def swap() -> None:
        first.rename(first.with_name("aside"))
        second.rename(first)
        first.with_name("aside").rename(second)

    swap()
    (finished.path / "results/table9.csv").unlink()
    result = finished.snakemake("results/table9.csv", check=False)
    output = result.stdout + result.stderr
    assert result.returncode and "Traceback" not in output
    assert "holds the manifest of quantize/llama-1m" in output
    swap()
    finished.snakemake("results/table9.csv")


def test_a_tampered_payload_is_found_and_rebuilt_alone(finished: Workdir, monkeypatch: pytest.MonkeyPatch) -> None:
    """Retrained to the same bytes, so that nothing after it runs."""
    monkeypatch.chdir(finished.path)
    weights = Path("results/pretrain/llama-1m/model/model.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    damaged = {name: found for name, found in verify(Path("results")).items() if found}
    assert damaged == {"pretrain/llama-1m": [f"{weights} does not match the sha256 in its manifest"]}
    shutil.rmtree(weights.parents[1])
    assert _built_by_running(finished, "results/pretrain/llama-1m/manifest.json") == {"pretrain/llama-1m"}
    assert finished.planned() == set()


def test_a_rerun_that_changes_nothing_stops_where_nothing_changed(finished: Workdir) -> None:
    """Snakemake runs everything after a forced node; each of them sees its inputs unchanged and stands."""
    target = "results/profile/llama-1m.int4/manifest.json"
    assert _built_by_running(finished, target, options=["--forcerun", "quantize"]) == set()
    assert finished.planned() <= PRECISION_TABLES


def test_what_is_planned_is_what_runs(finished: Workdir, tiny_plans: dict[str, set[str]]) -> None:
    """Run, not only plan, the edit of one model's setting; the other model's artifacts stay untouched."""
    case = "one model's precision settings"
    TINY_CASES[case][0].edit(finished.study)
    finished.write()
    assert _built_by_running(finished, "all") == tiny_plans[case] - PRECISION_TABLES
    quantization = json.loads((finished.path / "results/quantize/llama-1m.int4/quantization.json").read_text())
    assert quantization["precision"]["damping"] == 0.1
    assert finished.planned() == set()


def _built_by_running(workdir: Workdir, target: str, options: Iterable[str] = ()) -> set[str]:
    """Artifacts that a run published; those that it only found to stand keep their provenance."""
    results = workdir.path / "results"
    before = {path: path.stat().st_ino for path in results.glob("[!.]*/*/provenance.json")}
    workdir.snakemake(target, options=list(options))
    after = {path: path.stat().st_ino for path in results.glob("[!.]*/*/provenance.json")}
    return {"/".join(path.parts[-3:-1]) for path, inode in after.items() if before.get(path) != inode}
