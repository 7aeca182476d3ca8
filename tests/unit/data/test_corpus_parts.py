"""A corpus in parts: the same bytes for any number of processes, and whatever is killed when."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from effllm.data import arrays
from effllm.data.corpus import sample
from effllm.data.exact_duplicates import merge, merges
from effllm.data.runs import RUN_RECORDS, SHARE_RECORDS, of_unit
from effllm.data.settings import Corpus
from effllm.data.sources.files import FilesSource
from effllm.runtime.artifact import digest_tree
from tests.unit.data.corpus_documents import document, documents, write_parquet

CONFIG = {
    "source": {"kind": "files", "paths": ["unused.jsonl"]},
    "languages": ["en"],
    "minimum_int_score": 2,
    "sample_fraction": 0.9,
    "held_out_fraction": 0.1,
    "shard_documents": 150,
}
FILES = 5


class Killed(BaseException):
    """What nothing catches."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Files of documents, some filtered, some copies of others in other files, some nearly so."""
    directory = tmp_path_factory.mktemp("files")
    rng = random.Random(0)
    rows = [document(n, language=rng.choice(["en", "en", "de"]), int_score=rng.choice([1, 3, 4])) for n in range(900)]
    rows += [row | {"id": f"copy-{row['id']}"} for row in rng.sample(rows, 300)]
    rows += [row | {"id": f"near-{row['id']}", "text": row["text"] + "And more."} for row in rng.sample(rows, 100)]
    rng.shuffle(rows)
    size = -(-len(rows) // FILES)
    return [
        write_parquet(directory / f"{n}.parquet", rows[n * size : (n + 1) * size], row_group_size=40)
        for n in range(FILES)
    ]


def sampled(files: list[Path], directory: Path, processes: int = 1, **changes: object) -> dict[str, object]:
    """Digests of the shards and the summary."""
    output, scratch = directory / f"output-{processes}", directory / "scratch"
    output.mkdir(parents=True, exist_ok=True)
    scratch.mkdir(exist_ok=True)
    summary = sample(FilesSource(files), Corpus.model_validate(CONFIG | changes), output, scratch, processes)
    assert not list((scratch / "written").iterdir())
    return {"summary": summary.model_dump(), "shards": digest_tree(output)}


@pytest.mark.parametrize("budget", [pytest.param(None, marks=pytest.mark.slow), 9_000])
def test_the_number_of_processes_does_not_show(files: list[Path], tmp_path: Path, budget: int | None) -> None:
    changes = {"maximum_tokens": budget, "near_duplicates": {"keep": "longest"}}
    whole = sampled(files, tmp_path / "1", **changes)
    dropped = whole["summary"]["dropped"]
    assert dropped["duplicate"] > 10 and dropped["clustered"] > 5 and len(whole["shards"]) >= 3
    assert sampled(files, tmp_path / "4", 4, **changes) == whole


@pytest.mark.slow
def test_as_many_processes_as_files_do_not_show(tmp_path: Path) -> None:
    rows = [*documents(800), *documents(400), *(row | {"text": row["text"] + "And more."} for row in documents(200))]
    files = [write_parquet(tmp_path / f"{n:02d}.parquet", rows[n::8]) for n in range(8)]
    whole = sampled(files, tmp_path / "1", 1, near_duplicates={})
    assert sampled(files, tmp_path / "8", 8, near_duplicates={}) == whole


@pytest.mark.parametrize("near", [None, {}])
def test_the_bytes_do_not_depend_on_how_documents_lie_in_files(files: list[Path], tmp_path: Path, near: object) -> None:
    import pyarrow.parquet as pq

    rows = [row for file in files for row in pq.read_table(file).to_pylist()]
    one = [write_parquet(tmp_path / "one.parquet", rows)]
    assert sampled(one, tmp_path / "one", near_duplicates=near) == sampled(files, tmp_path / "5", near_duplicates=near)


def test_a_run_that_is_killed_at_any_file_that_it_finishes_is_taken_up(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"maximum_tokens": 9_000, "near_duplicates": {}}
    whole = sampled(files, tmp_path / "whole", **changes)
    finished, replace, count = Path.replace, Path.replace, [0]

    def dying(path: Path, target: Path, at: int, after: bool) -> Path:
        count[0] += 1
        if count[0] == at and not after:
            raise Killed
        found = replace(path, target)
        if count[0] == at and after:
            raise Killed
        return found

    monkeypatch.setattr(Path, "replace", lambda path, target: dying(path, target, 0, False))
    sampled(files, tmp_path / "counted", **changes)
    steps = count[0]
    rng = random.Random(1)
    for attempt in range(10):
        # Of each attempt a second kill, in what the first has left.
        for at in (rng.randrange(1, steps), rng.randrange(1, steps)):
            count[0], after = 0, rng.random() < 0.5
            monkeypatch.setattr(
                Path, "replace", lambda path, target, at=at, after=after: dying(path, target, at, after)
            )
            with contextlib.suppress(Killed):
                sampled(files, tmp_path / f"{attempt}", **changes)
        monkeypatch.setattr(Path, "replace", finished)
        assert sampled(files, tmp_path / f"{attempt}", **changes) == whole


@pytest.mark.slow
def test_processes_that_are_killed_at_any_time_leave_nothing_that_shows(files: list[Path], tmp_path: Path) -> None:
    whole = sampled(files, tmp_path / "whole", near_duplicates={})
    code = (
        "import sys; from pathlib import Path; from tests.unit.data.test_corpus_parts import sampled;"
        "sampled(list(map(Path, sys.argv[2:])), Path(sys.argv[1]), 3, near_duplicates={})\n"
    )
    program = tmp_path / "program.py"
    program.write_text(f"if __name__ == '__main__':\n    {code}")
    rng = random.Random(2)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    for _ in range(8):
        process = subprocess.Popen([sys.executable, program, tmp_path / "killed", *files], env=environment)
        time.sleep(rng.uniform(0.5, 6))
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert sampled(files, tmp_path / "killed", near_duplicates={}) == whole


def test_duplicates_are_found_in_shares_as_in_one(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from effllm.data import drawing, runs

    config = Corpus.model_validate(CONFIG)
    found = {}
    for run, share in ((RUN_RECORDS, SHARE_RECORDS), (30, 20)):
        monkeypatch.setattr(runs, "RUN_RECORDS", run)
        monkeypatch.setattr(runs, "SHARE_RECORDS", share)
        units = FilesSource(files).units()
        drawings = [drawing.Drawing(unit, n, tmp_path / f"{run}-{n}", config) for n, unit in enumerate(units)]
        for each in drawings:
            drawing.draw(each)
        target = tmp_path / f"merged-{run}"
        target.mkdir()
        tasks = merges(drawings, target)
        merged = [merge(task) for task in tasks]
        found[len(tasks)] = [sorted(row for rows in of_unit(merged, each.number) for row in rows) for each in drawings]
    (one, many) = found.values()
    assert min(found) == 1 and max(found) >= 32 and one == many and sum(map(len, one)) > 100


def test_digests_that_share_a_half_are_told_apart(tmp_path: Path) -> None:
    import numpy as np

    from effllm.data.drawing import DIGEST
    from effllm.data.exact_duplicates import _later

    rows = [(7, 1, 0), (7, 2, 1), (5, 1, 2), (7, 1, 3), (7, 3, 4), (7, 2, 5), (5, 1, 6), (9, 9, 7)]
    assert sorted(_later(np.array(rows, dtype=DIGEST))) == [3, 5, 6]


def test_an_array_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    def fail(number: int) -> None:
        raise Killed

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(Killed):
        arrays.save(tmp_path / "a.npy", np.arange(3))
    assert not (tmp_path / "a.npy").exists()
    monkeypatch.undo()
    for array in (np.arange(3), np.zeros(0, np.uint8), np.arange(10_000)):
        arrays.save(tmp_path / "a.npy", array)
        assert np.array_equal(arrays.load(tmp_path / "a.npy"), array)
