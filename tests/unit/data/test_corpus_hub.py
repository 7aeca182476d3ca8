"""The hub source: what it asks `datasets` for, what it makes of the answer, and what a missing network gets."""

import json
import os
import subprocess
import sys

import datasets
import pytest
from corpus_documents import documents, kept
from huggingface_hub.errors import HTTPError

from effllm.errors import UserError

SOURCE = {"kind": "hub", "repo": "HuggingFaceFW/fineweb-edu", "name": "sample-10BT", "revision": "0123456789" * 4}


@pytest.fixture
def sample_hub(run_stage):
    def sample(**config):
        return run_stage("corpus", "hub", {"source": SOURCE, "held_out_fraction": 0.2} | config)

    return sample


@pytest.fixture
def answer(monkeypatch):
    """Let `datasets.load_dataset` return what a function gives; the list holds the arguments it was called with."""
    calls = []

    def install(respond):
        def load_dataset(*args, **kwargs):
            calls.append((args, kwargs))
            return respond()

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        return calls

    return install


def stream_of(rows):
    return datasets.Dataset.from_list(rows).to_iterable_dataset()


def test_the_pinned_revision_is_streamed_without_code_from_the_repository(sample_hub, answer):
    rows = documents(2500, extra_column="ignored")
    calls = answer(lambda: stream_of(rows))
    corpus = sample_hub()
    assert calls == [
        (
            (),
            {
                "path": "HuggingFaceFW/fineweb-edu",
                "name": "sample-10BT",
                "split": "train",
                "revision": "0123456789" * 4,
                "streaming": True,
            },
        )
    ]
    for row in rows:
        del row["extra_column"]
    found = kept(corpus, "train")
    held_out = {row["id"] for row in kept(corpus, "held_out")}
    assert held_out and found == [row for row in rows if row["id"] not in held_out]


def test_a_budget_stops_reading_the_stream(sample_hub, answer):
    read = []

    def rows():
        for row in documents(20_000):
            read.append(row["id"])
            yield row

    answer(lambda: datasets.IterableDataset.from_generator(rows))
    assert sample_hub(maximum_tokens=20_000).json("corpus.json")["budget_met"] is True
    # The budget takes about 500 documents; the batch after them is already being read.
    assert len(read) <= 4000


def test_missing_columns_of_a_dataset_are_named(sample_hub, answer):
    rows = documents(10)
    for row in rows:
        del row["int_score"], row["dump"]
    answer(lambda: stream_of(rows))
    with pytest.raises(UserError, match=r"fineweb-edu \(sample-10BT\) at 01234567: no column dump, int_score"):
        sample_hub()


def test_a_connection_lost_in_the_middle_is_the_users_to_mend(sample_hub, answer):
    def rows():
        yield from documents(1500)
        raise HTTPError("connection reset")

    answer(lambda: datasets.IterableDataset.from_generator(rows))
    with pytest.raises(UserError, match=r"cannot be read \(connection reset\); check the network"):
        sample_hub()


def test_an_unknown_configuration_names_the_key(sample_hub, answer):
    def respond():
        raise ValueError("BuilderConfig 'sample-10BT' not found. Available: ['default']")

    answer(respond)
    with pytest.raises(UserError, match=r"BuilderConfig 'sample-10BT' not found.*correct source.name"):
        sample_hub()


@pytest.mark.parametrize(
    ("module", "config", "named"),
    [
        ("effllm.data.corpus", {"source": SOURCE, "held_out_fraction": 0.1}, "HuggingFaceFW/fineweb-edu"),
        (
            "effllm.data.tokenizer",
            {"tokenizer": {"kind": "hub", "repo": "Qwen/Qwen2.5-7B", "revision": "0123456789" * 4}},
            "Qwen/Qwen2.5-7B",
        ),
    ],
)
def test_without_network_the_program_prints_one_sentence_and_exits_with_2(tmp_path, module, config, named):
    spec = tmp_path / "spec.json"
    stage = module.rpartition(".")[2]
    spec.write_text(json.dumps({"stage": stage, "version": 1, "config": config}))
    argv = [sys.executable, "-m", module, "--spec", spec, "--output", tmp_path / "results" / stage / "hub"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "empty")}
    finished = subprocess.run(argv, env=environment, capture_output=True, text=True)
    errors = [line for line in finished.stderr.splitlines() if line.startswith("error: ")]
    assert finished.returncode == 2, finished.stderr
    assert len(errors) == 1 and named in errors[0] and "check the network" in errors[0]
    assert "Traceback" not in finished.stderr
    assert not (tmp_path / "results" / stage / "hub").exists()
