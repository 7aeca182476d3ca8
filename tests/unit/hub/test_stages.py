"""Stages that download, against a hub that fails."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from effllm.errors import UserError
from effllm.evaluation import benchmark
from effllm.models import import_model
from effllm.runtime import stage
from effllm.runtime.artifact import Artifact
from effllm.stages import STAGES
from tests.conftest import spec_of
from tests.hub.fixtures import environment
from tests.hub.server import Corrupt, Hang, Hub, Reset, Status, Truncate

CDN = r"GET cdn .*model-00002.*safetensors"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A model of two shards with its tokenizer, as `save_pretrained` lays it out."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=2
    )
    torch.manual_seed(0)
    words = {"<s>": 0, "</s>": 1, "<unk>": 2} | {f"w{index}": index for index in range(3, 64)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<unk>")),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        unk_token="<unk>",
    )
    directory = tmp_path_factory.mktemp("model")
    LlamaForCausalLM(config).save_pretrained(directory, max_shard_size="400KB")
    tokenizer.save_pretrained(directory)
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def build_model(hub: Hub, files: dict[str, bytes], tmp_path: Path, access: str = "open") -> Artifact:
    revision = hub.add("model", "owner/name", files, access)
    spec = spec_of("model", {"kind": "hub", "repo": "owner/name", "revision": revision})
    return stage.run(STAGES["model"], import_model.build, spec=spec, inputs={}, output=tmp_path / "results/model/m")


def payload(artifact: Artifact) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (artifact.directory / "model").iterdir()}


@pytest.mark.parametrize(
    ("pattern", "fault"),
    [
        (CDN, Status(503)),
        (CDN, Reset(after=100_000)),
        (CDN, Truncate(after=100_000)),
        (CDN, Status(403)),
        (CDN, Corrupt()),
        (r"/resolve/.*config.json", Status(429, {"Retry-After": "3"})),
        (r"/tree/", Status(504)),
    ],
)
def test_a_model_arrives_whole_whatever_the_hub_does(hub: Hub, files, tmp_path: Path, pattern, fault) -> None:
    hub.fault(pattern, fault)
    built = build_model(hub, files | {"README.md": b"# A model", "original/params.json": b"{}"}, tmp_path)
    assert payload(built) == files


def test_a_model_that_is_altered_on_the_way_is_not_published(hub: Hub, files, tmp_path: Path) -> None:
    hub.fault(CDN, Corrupt(), times=9)
    with pytest.raises(UserError, match=r"arrived with another sha256 digest than the hub lists"):
        build_model(hub, files, tmp_path)
    assert not (tmp_path / "results/model/m").exists()


def test_a_gated_model_says_how_to_get_it_before_anything_is_fetched(hub: Hub, files, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"owner/name is gated: accept its licence at http.*/owner/name.*HF_TOKEN"):
        build_model(hub, files, tmp_path, "gated")
    assert hub.asked("/resolve/") == []


def test_a_model_without_safetensors_is_refused_before_anything_is_fetched(hub: Hub, files, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no safetensors: choose a revision that has"):
        build_model(hub, {"config.json": b"{}", "pytorch_model.bin": b"weights"}, tmp_path)
    assert hub.asked("/resolve/") == []


@pytest.mark.slow
def test_a_killed_model_stage_goes_on_with_what_it_had(hub: Hub, files, tmp_path: Path) -> None:
    revision = hub.add("model", "owner/name", files)
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps(spec_of("model", {"kind": "hub", "repo": "owner/name", "revision": revision})))
    output = tmp_path / "results/model/m"
    command = [sys.executable, "-m", "effllm.models.import_model", "--spec", spec, "--output", output]
    hub.fault(CDN, Hang(seconds=60, after=200_000))
    settings = os.environ | environment(hub, tmp_path / "home")
    process = subprocess.Popen(command, env=settings, stderr=subprocess.DEVNULL)
    scratch = tmp_path / "results/.scratch/model/m/work/model"
    whole = {name for name in files if "00002-of" not in name}

    def arrived() -> bool:
        partial = list(scratch.glob(".*00002-of*.partial"))
        return all((scratch / name).exists() for name in whole) and partial and partial[0].stat().st_size > 100_000

    while not arrived():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    hub.heal()
    subprocess.run(command, env=settings, check=True, capture_output=True)
    assert payload(Artifact.open(output / "manifest.json")) == files
    (again,) = [request for request in hub.requests if "/resolve/" in request.path and request.host == "cdn"]
    assert "00002" in again.path and int(again.range.removeprefix("bytes=").removesuffix("-")) > 100_000


def test_a_benchmark_reads_its_dataset_through_the_same_downloads(hub: Hub, tmp_path: Path) -> None:
    choices = repr(["Ann", "Bob"])
    rows = [
        {
            "narrative": f"Case {n}.",
            "question": "Who?",
            "choices": choices,
            "answer_index": n % 2,
            "answer_choice": "Ann",
        }
        for n in range(6)
    ]
    readme = "---\nconfigs:\n- config_name: default\n  data_files:\n"
    files = {}
    for split in ("murder_mysteries", "object_placements", "team_allocation"):
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), buffer)
        files[f"{split}.parquet"] = buffer.getvalue()
        readme += f"  - split: {split}\n    path: {split}.parquet\n"
    revision = hub.add("dataset", "TAUR-Lab/MuSR", files | {"README.md": f"{readme}---\n".encode()})
    hub.fault(r"GET cdn .*object", Reset(after=100))
    hub.fault(r"GET cdn .*team", Status(403))
    settings = {"kind": "harness", "task": "leaderboard_musr", "revision": revision, "metric": "acc_norm"}
    spec = spec_of("benchmark", {"benchmark": settings | {"chance_level": 0.4}})
    built = stage.run(
        STAGES["benchmark"], benchmark.build, spec=spec, inputs={}, output=tmp_path / "results/benchmark/b"
    )
    tasks = built.json("benchmark.json")["tasks"]
    found = [
        pq.read_table(built.directory / file).to_pylist() for task in tasks for file in task["data_files"].values()
    ]
    assert found == [rows, rows, rows]
    hub.heal()
    wrong = spec_of("benchmark", {"benchmark": settings | {"chance_level": 0.4, "revision": "0" * 40}})
    with pytest.raises(UserError, match=r"'leaderboard_musr_.*' needs TAUR-Lab/MuSR, and .* has no revision 0{40}"):
        stage.run(STAGES["benchmark"], benchmark.build, spec=wrong, inputs={}, output=tmp_path / "results/benchmark/c")
