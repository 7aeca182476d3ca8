"""The hub source: the pinned rows in their order, whatever the hub's faults, and what a wrong study gets."""

import io
import json
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpus_documents import documents, kept
from huggingface_hub import constants

from effllm.errors import UserError
from effllm.hub import dataset
from tests.conftest import spec_of
from tests.hub.fixtures import environment
from tests.hub.server import Corrupt, Reset, Status, Truncate

REPO = "HuggingFaceFW/fineweb-edu"
README = b"""---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/*/*
- config_name: sample-10BT
  data_files:
  - split: train
    path: sample/10BT/*
---
"""
OTHER = "data/CC-MAIN-2024-10/000_00000"
SHARD = r"GET cdn .*sample/10BT/001_00000.parquet"


def parquet(rows):
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=100)
    return file.getvalue()


@pytest.fixture
def sample_hub(run_stage, hub):
    """Sample a repository of the hub: `sample(rows by file, **config)`."""

    def sample(shards, source=None, **config):
        files = {"README.md": README}
        for name, rows in (shards | {OTHER: documents(10)}).items():
            files[f"{name}.parquet"] = parquet(rows)
        revision = hub.add("dataset", REPO, files)
        source = {"kind": "hub", "repo": REPO, "name": "sample-10BT", "revision": revision} | (source or {})
        return run_stage("corpus", "hub", {"source": source, "held_out_fraction": 0.2} | config)

    return sample


def shards(count=2500, **changes):
    rows = documents(count, **changes)
    third = len(rows) // 3
    return rows, {
        "sample/10BT/000_00000": rows[:third],
        "sample/10BT/001_00000": rows[third : 2 * third],
        "sample/10BT/002_00000": rows[2 * third :],
    }


def in_order(corpus, rows):
    held_out = {row["id"] for row in kept(corpus, "held_out")}
    return held_out and kept(corpus, "train") == [row for row in rows if row["id"] not in held_out]


def test_the_configuration_is_read_whole_and_in_order_and_nothing_else_is_fetched(sample_hub, hub):
    rows, files = shards(extra_column="ignored")
    corpus = sample_hub(files)
    for row in rows:
        del row["extra_column"]
    assert in_order(corpus, rows)
    assert hub.asked("CC-MAIN") == []
    assert [len(hub.asked(f"cdn .*/00{shard}_")) for shard in range(3)] == [1, 1, 1]


@pytest.mark.parametrize(
    ("pattern", "fault"),
    [
        (SHARD, Status(503)),
        (SHARD, Status(429, {"Retry-After": "3"})),
        (SHARD, Reset(after=5000)),
        (SHARD, Truncate(after=5000)),
        (SHARD, Corrupt()),
        (SHARD, Status(403)),
        (r"/tree/", Status(502)),
        (r"/resolve/.*README", Reset()),
    ],
)
def test_faults_of_the_hub_change_nothing(sample_hub, hub, pattern, fault):
    rows, files = shards(600)
    hub.fault(pattern, fault)
    assert in_order(sample_hub(files), rows)


def test_a_budget_stops_before_the_shards_that_it_does_not_need(sample_hub, hub):
    _, files = shards(20_000)
    assert sample_hub(files, maximum_tokens=20_000).json("corpus.json")["budget_met"] is True
    assert [len(hub.asked(f"cdn .*/00{shard}_")) for shard in range(3)] == [1, 0, 0]


def test_what_an_ended_run_has_fetched_is_not_fetched_again(sample_hub, hub):
    rows, files = shards(600)
    hub.fault(r"GET cdn .*/002_", Status(503), times=99)
    with pytest.raises(
        UserError, match=r"the dataset HuggingFaceFW/fineweb-edu cannot be fetched: the hub answers 503"
    ):
        sample_hub(files)
    hub.heal()
    assert in_order(sample_hub(files), rows)
    assert [len(hub.asked(f"cdn .*/00{shard}_")) for shard in range(3)] == [0, 0, 1]


def test_offline_a_dataset_comes_from_the_cache(run_stage, hub, tmp_path, monkeypatch):
    rows, files = shards(600)
    content = {f"{name}.parquet": parquet(part) for name, part in files.items()} | {"README.md": README}
    revision = hub.add("dataset", REPO, content | {f"{OTHER}.parquet": parquet(documents(10))})
    code = f"import huggingface_hub as h; h.snapshot_download({REPO!r}, repo_type='dataset', revision={revision!r})"
    settings = environment(hub, tmp_path / "home") | {"HF_HUB_CACHE": constants.HF_HUB_CACHE}
    subprocess.run([sys.executable, "-c", code], env=os.environ | settings, check=True, capture_output=True)
    hub.heal()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    source = {"kind": "hub", "repo": REPO, "name": "sample-10BT", "revision": revision}
    assert in_order(run_stage("corpus", "hub", {"source": source, "held_out_fraction": 0.2}), rows)
    assert hub.requests == []


def test_a_split_too_large_to_keep_passes_through_the_disk(sample_hub, monkeypatch):
    rows, files = shards(600)
    monkeypatch.setattr(dataset, "KEPT_BYTES", 1000)
    sizes, empty = [], dataset.HubDataset.empty

    def measured(self, file):
        sizes.append((self._root / file).stat().st_size > 0)
        empty(self, file)
        sizes.append((self._root / file).stat().st_size > 0)

    monkeypatch.setattr(dataset.HubDataset, "empty", measured)
    assert in_order(sample_hub(files), rows)
    assert sizes == [True, False] * 3


def test_missing_columns_of_a_dataset_are_named(sample_hub):
    rows = documents(10)
    for row in rows:
        del row["int_score"], row["dump"]
    with pytest.raises(UserError, match=r"fineweb-edu \(sample-10BT\) at [0-9a-f]{8}: no column dump, int_score"):
        sample_hub({"sample/10BT/000_00000": rows})


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            {"name": "sample-11BT"},
            r"BuilderConfig 'sample-11BT' not found.*'default', 'sample-10BT'.*name another config",
        ),
        ({"split": "test"}, r"has no split 'test': its splits are 'train'"),
        (
            {"revision": "0" * 40},
            r"the dataset HuggingFaceFW/fineweb-edu has no revision 0{40}: take a commit that http",
        ),
        ({"repo": "HuggingFaceFW/fineweb-edy"}, r"the dataset HuggingFaceFW/fineweb-edy does not exist on the hub"),
    ],
)
def test_a_wrong_source_names_the_key(sample_hub, source, said):
    with pytest.raises(UserError, match=said) as raised:
        sample_hub({"sample/10BT/000_00000": documents(10)}, source)
    assert "network" not in str(raised.value) and "/work" not in str(raised.value)


def test_a_file_that_is_no_parquet_on_the_hub_itself_does_not_blame_the_network(run_stage, hub):
    files = {"README.md": README, "sample/10BT/a.parquet": b"PAR1 no PAR1", f"{OTHER}.parquet": parquet(documents(10))}
    revision = hub.add("dataset", REPO, files)
    source = {"kind": "hub", "repo": REPO, "name": "sample-10BT", "revision": revision}
    with pytest.raises(UserError, match=r"cannot be read as configured \(sample/10BT/a.parquet: ") as raised:
        run_stage("corpus", "hub", {"source": source, "held_out_fraction": 0.2})
    assert "network" not in str(raised.value)


def test_a_readme_that_names_files_elsewhere_is_refused(run_stage, hub, tmp_path):
    (tmp_path / "secret.parquet").write_bytes(parquet(documents(10)))
    readme = README.replace(b"sample/10BT/*", str(tmp_path / "secret.parquet").encode())
    revision = hub.add("dataset", REPO, {"README.md": readme, "data/a/b.parquet": parquet(documents(10))})
    source = {"kind": "hub", "repo": REPO, "name": "sample-10BT", "revision": revision}
    with pytest.raises(UserError, match=r"names a data file outside of it, .*secret.parquet: use another dataset"):
        run_stage("corpus", "hub", {"source": source, "held_out_fraction": 0.2})


@pytest.mark.parametrize(
    ("module", "config", "named"),
    [
        (
            "effllm.data.corpus",
            {"source": {"kind": "hub", "repo": REPO, "revision": "0123456789" * 4}, "held_out_fraction": 0.1},
            REPO,
        ),
        pytest.param(
            "effllm.data.tokenizer",
            {"tokenizer": {"kind": "hub", "repo": "Qwen/Qwen2.5-7B", "revision": "0123456789" * 4}},
            "Qwen/Qwen2.5-7B",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_offline_the_program_prints_one_sentence_and_exits_with_2(tmp_path, module, config, named):
    spec = tmp_path / "spec.json"
    stage = module.rpartition(".")[2]
    spec.write_text(json.dumps(spec_of(stage, config)))
    argv = [sys.executable, "-m", module, "--spec", spec, "--output", tmp_path / "results" / stage / "hub"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "empty")}
    finished = subprocess.run(argv, env=environment, capture_output=True, text=True)
    errors = [line for line in finished.stderr.splitlines() if line.startswith("error: ")]
    assert finished.returncode == 2, finished.stderr
    assert len(errors) == 1 and named in errors[0] and "HF_HUB_OFFLINE is set" in errors[0]
    assert "Traceback" not in finished.stderr
    assert not (tmp_path / "results" / stage / "hub").exists()
