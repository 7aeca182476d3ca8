"""Local files count by their content: times start nothing, and what has changed starts what follows from it alone."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import cut_down
from tests.json_lines import write_lines
from tests.unit.data.corpus_documents import documents
from tests.unit.models.foreign import write_model
from tests.workflow.conftest import Change, Workdir, stand_in
from tests.workflow.edits import FROM_TABLES, PRECISION_TABLES, TINY, evaluations, variants, with_pairs

PROFILES = [Change(), Change(profile=["--profile", "profiles/gh200"])]
FINETUNED = {f"finetune/llama-1m.describe.{method}" for method in ("lora", "full")}
TRAINED = {
    *("corpus/python-docs", "tokenizer/python-docs-2k", "tokens/python-docs"),
    *(f"pretrain/{model}" for model in TINY[0]),
    *(f"benchmark/{benchmark}" for benchmark in TINY[2]),
    *(f"overlap/{benchmark}.python-docs" for benchmark in TINY[2]),
}
MODELS = (*TINY[0], "mine")
# The model that is not trained here is calibrated with the corpus, and scored on text of it.
CALIBRATED = {"quantize/mine.int4", "profile/mine.int4"} | evaluations(["mine"], *TINY[1:])
# What follows from each local file.
FOLLOWS = {
    "corpus.jsonl": TRAINED | FINETUNED | variants(*TINY) | CALIBRATED | PRECISION_TABLES | with_pairs({"table7.csv"}),
    "instructions.jsonl": with_pairs({"instructions/stdlib-describe", "table7.csv", "validity.csv"})
    | FINETUNED
    | FROM_TABLES,
    "model/model.safetensors": {"model/mine"} | variants(["mine"], *TINY[1:]) | PRECISION_TABLES,
}
# Beyond this Snakemake compares times alone.
CHECKSUM_B = 1_000_000


@pytest.fixture(scope="module")
def local(tiny_text: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Workdir:
    """A study of local files too large for Snakemake to look at their content, with stand-ins for results."""
    path = tmp_path_factory.mktemp("local")
    write_lines(path / "corpus.jsonl", [{"text": "a" * CHECKSUM_B}])
    write_lines(path / "instructions.jsonl", [{"question": "a", "answer": "b" * CHECKSUM_B}])
    write_model(path / "model", hidden_size=128, intermediate_size=2048)
    study = cut_down(tiny_text)
    study["corpora"]["python-docs"]["source"] = {"kind": "files", "paths": [str(path / "corpus.jsonl")]}
    study["instructions"]["stdlib-describe"]["source"] = {
        "kind": "files",
        "paths": [str(path / "instructions.jsonl")],
        "columns": {"kind": "prompt_response", "prompt": "{question}", "response": "{answer}"},
    }
    study["models"]["mine"] = {"source": {"kind": "local", "path": str(path / "model")}}
    study["finetuning"]["describe"]["methods"] = ["lora", "full"]
    study["finetuning"]["describe"].pop("parallel_by_method", None)
    for table in ("table9", "table16"):
        study["tables"][table]["models"] = list(MODELS)
    study["tables"]["table7"] = {"suite": "describe"}
    assert all((path / name).stat().st_size > CHECKSUM_B for name in FOLLOWS)
    return stand_in(path, study)


@contextmanager
def _altered(path: Path) -> Iterator[None]:
    """The last letter of a file is another, at the same size and under the same time; put back, but for the time."""
    content, before = path.read_bytes(), path.stat()
    place = len(content) - 20
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    try:
        yield
    finally:
        path.write_bytes(content)


def test_times_of_local_files_rerun_nothing(local: Workdir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(local.path)
    for name in FOLLOWS:
        os.utime(local.path / name, (time.time() + 5, time.time() + 5))
    assert local.planned_after(PROFILES) == [set(), set()]
    assert local.planned_without_snakemake(Change()) == set()


@pytest.mark.parametrize("name", FOLLOWS)
def test_other_content_of_a_local_file_reruns_exactly(
    name: str, local: Workdir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever its time says; Snakemake and the plan agree. With its old content nothing is to be done again."""
    monkeypatch.chdir(local.path)
    with _altered(local.path / name):
        assert local.planned_after(PROFILES) == [FOLLOWS[name], FOLLOWS[name]]
        assert local.planned_without_snakemake(Change()) == FOLLOWS[name]
    assert local.planned_after([Change()]) == [set()]
    assert local.planned_without_snakemake(Change()) == set()


@pytest.mark.slow
def test_other_content_is_built_once(workdir: Workdir) -> None:
    """A run, and not only a plan: what was built from the new content is what the next run finds."""
    file, target = workdir.path / "corpus.jsonl", "results/corpus/python-docs/manifest.json"
    write_lines(file, documents(100))
    workdir.study["corpora"]["python-docs"] = {"source": {"kind": "files", "paths": ["corpus.jsonl"]}}
    workdir.study["corpora"]["python-docs"]["held_out_fraction"] = 0.1
    workdir.write()
    assert workdir.built_by_running(target) == {"corpus/python-docs"}
    os.utime(file, (time.time() - 1, time.time() - 1))
    assert workdir.planned(target) == set()
    before = file.stat()
    file.write_text(file.read_text().replace("Document 7 ", "Document X "))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert workdir.built_by_running(target) == {"corpus/python-docs"}
    assert workdir.planned(target) == set()


def test_a_clock_that_was_set_back_is_told_before_the_work(workdir: Workdir) -> None:
    file = workdir.path / "corpus.jsonl"
    write_lines(file, documents(1))
    os.utime(file, (time.time() + 7200, time.time() + 7200))
    workdir.study["corpora"]["python-docs"]["source"] = {"kind": "files", "paths": ["corpus.jsonl"]}
    workdir.write()
    result = workdir.snakemake("results/corpus/python-docs/manifest.json", check=False)
    output = result.stdout + result.stderr
    assert result.returncode
    assert "corpus python-docs: corpus.jsonl is dated " in output
    assert "set the clock right, or touch the file." in output
    assert "older modification time" not in output and "Traceback" not in output
    assert not (workdir.path / "results/.scratch/corpus/python-docs").exists()
