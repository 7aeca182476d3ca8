"""Edits of studies, and what follows from each: the cases of the tests of what reruns."""

import re
from collections.abc import Callable, Iterable
from itertools import product
from typing import Any

from effllm.study.inheritance import read_study
from tests.conftest import REPOSITORY
from tests.workflow.conftest import Change

Study = dict[str, Any]
# What is made from every table of a study.
FROM_TABLES = {"pairs.csv", "ranks.csv", "comparison.csv", "claims.csv"}


def with_pairs(follows: set[str]) -> set[str]:
    """What follows from an edit, with each numbered table its pairs, and with that of precisions the crossovers."""
    follows = follows | ({"crossover.csv"} if "table9.csv" in follows else set())
    return follows | {name.replace(".", "-pairs.") for name in follows if re.fullmatch(r"table\d+\.csv", name)}


PRECISION_TABLES = with_pairs({"table9.csv", "table16.csv", "validity.csv"}) | FROM_TABLES
PAPER = read_study(REPOSITORY / "config" / "paper.yaml")
MODELS, PRECISIONS, BENCHMARKS = (PAPER["tables"]["table16"][key] for key in ("models", "precisions", "benchmarks"))
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

PAPER_CASES = {name: (change, with_pairs(follows)) for name, (change, follows) in PAPER_CASES.items()}

TINY_CASES: dict[str, tuple[Change, set[str]]] = {
    "nothing": (Change(), set()),
    "the corpus's seed": (
        Change(put("corpora/python-docs/seed", 1)),
        {"corpus/python-docs", "tokenizer/python-docs-2k", "tokens/python-docs"}
        | {f"{stage}/{id}" for stage, ids in (("pretrain", TINY[0]), ("benchmark", TINY[2])) for id in ids}
        | {f"overlap/{benchmark}.python-docs" for benchmark in TINY[2]}
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
        {"benchmark/perplexity", "overlap/perplexity.python-docs"}
        | evaluations(*TINY[:2], ["perplexity"])
        | PRECISION_TABLES,
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
