"""A real language model as a user's own: imported, quantized, scored, profiled, and decided on.

What it says is compared with plain Transformers on the same directory; benchmarks are few, as a CPU takes seconds for a
forward pass.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from effllm.runtime.artifact import Artifact
from tests.conftest import REPOSITORY
from tests.real_model import write_real_model
from tests.workflow.conftest import Workdir

pytestmark = pytest.mark.slow

TARGETS = ["results/table9.csv", "results/report.html"]
PARAMETERS, QUANTIZED_PARAMETERS = 134_515_008, 106_168_320
FACTS = {"The capital of France is": " Paris", "The opposite of hot is": " cold"}


def _study(tiny: dict[str, Any], model: Path) -> dict[str, Any]:
    """Settings of the embedded study around one model; windows and calibration are short."""
    int4 = {**tiny["precisions"]["int4"], "group_size": 64}
    calibration = {**int4["calibration"], "samples": 8, "sequence_length": 64}
    benchmarks = {
        "word-order": {**tiny["benchmarks"]["word-order"], "items": 6},
        "perplexity": {**tiny["benchmarks"]["perplexity"], "items": 2},
    }
    inference = {
        **tiny["inference"],
        "workloads": {"single": {"prompt_tokens": 8, "new_tokens": 2}},
        "warmup_maximum": 3,
        "repeats": 2,
        "minimum_window_s": 0.1,
        "maximum_relative_interval": 1000,
    }
    return {
        "name": "smollm2",
        "corpora": tiny["corpora"],
        "models": {"smollm2": {"source": {"kind": "local", "path": str(model)}, "label": "SmolLM2-135M"}},
        "precisions": {"bfloat16": tiny["precisions"]["bfloat16"], "int4": {**int4, "calibration": calibration}},
        "benchmarks": benchmarks,
        "evaluation": tiny["evaluation"],
        "inference": inference,
        "tables": {
            "table9": {
                "models": ["smollm2"],
                "precisions": ["bfloat16", "int4"],
                "benchmarks": list(benchmarks),
                "workload": "single",
            }
        },
    }


@pytest.fixture(scope="module")
def model(request: pytest.FixtureRequest) -> Path:
    return write_real_model(request.config.cache.mkdir("models") / "smollm2")


class Reference:
    """A checkpoint by Transformers alone."""

    def __init__(self, directory: Path):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(directory)
        self.model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16)

    def continuation(self, prompt: str) -> str:
        """The next two tokens, greedily."""
        asked = self.tokenizer(prompt, return_tensors="pt")
        ids = self.model.generate(**asked, max_new_tokens=2, do_sample=False)
        return self.tokenizer.decode(ids[0, asked["input_ids"].shape[1] :])


@pytest.fixture(scope="module")
def reference(model: Path) -> Reference:
    return Reference(model)


@pytest.fixture(scope="module")
def workdir(tiny_text: dict[str, Any], model: Path, tmp_path_factory: pytest.TempPathFactory) -> Workdir:
    workdir = Workdir(tmp_path_factory.mktemp("real"), _study(tiny_text, model))
    assert "is valid" in _effllm(workdir, "check", "study.yaml")
    assert "quantize          2       0       0      2" in _effllm(workdir, "plan", "--study", "study.yaml")
    workdir.snakemake(*TARGETS, fresh=True)
    return workdir


@pytest.fixture(scope="module")
def table9(workdir: Workdir) -> pl.DataFrame:
    return pl.read_csv(workdir.path / "results" / "table9.csv")


def _effllm(workdir: Workdir, *arguments: str, codes: Sequence[int] = (0,)) -> str:
    """What a command prints in the directory of the study, if it ends with one of these codes."""
    command = [sys.executable, "-m", "effllm.cli", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    result = subprocess.run(command, cwd=workdir.path, env=environment, capture_output=True, text=True)
    assert result.returncode in codes, result.stderr
    return result.stdout


def _artifact(workdir: Workdir, node: str) -> Artifact:
    return Artifact.open(workdir.path / "results" / node / "manifest.json")


def test_no_cell_failed(table9: pl.DataFrame) -> None:
    assert table9.select("model", "precision").rows() == [("SmolLM2-135M", "bfloat16"), ("SmolLM2-135M", "int4")]
    for row in table9.iter_rows(named=True):
        # Others on the machine may disturb a measurement; a cell that failed would be a fault of ours.
        assert row["status"] == "ok" or (row["status"] == "invalid" and "disturbed" in row["reason"]), row


def test_it_knows_english(table9: pl.DataFrame) -> None:
    """In bits per byte, of which guessing needs 8."""
    bfloat16, int4 = table9["perplexity_score"]
    assert 0.5 < bfloat16 < 1.6
    assert 0 < int4 - bfloat16 < 0.25
    # Of 6 sentences, each among 3 other orders of its words, chance finds one or two.
    assert table9["word-order_score"].min() > 0.6


def test_texts_are_as_likely_as_transformers_says(workdir: Workdir, reference: Reference) -> None:
    import torch

    samples = _artifact(workdir, "evaluate/smollm2.bfloat16.perplexity").directory / "records" / "samples.jsonl"
    texts = [sample for sample in map(json.loads, samples.read_text().splitlines()) if sample["target"]]
    assert texts
    for text in texts:
        ids = [reference.tokenizer.bos_token_id, *reference.tokenizer(text["target"])["input_ids"]]
        with torch.no_grad():
            scores = reference.model(torch.tensor([ids[:-1]])).logits[0].float().log_softmax(-1)
        expected = sum(scores[place, word].item() for place, word in enumerate(ids[1:]))
        # In bfloat16 a batch of texts adds up in another order than a text alone.
        assert text["bits_per_byte"] == [pytest.approx(expected, rel=2e-3), len(text["target"].encode())]


def test_both_precisions_continue_facts(workdir: Workdir, reference: Reference) -> None:
    bfloat16, int4 = (
        Reference(_artifact(workdir, f"quantize/smollm2.{precision}").directory / "model")
        for precision in ("bfloat16", "int4")
    )
    for prompt, expected in FACTS.items():
        assert bfloat16.continuation(prompt) == reference.continuation(prompt)
        assert bfloat16.continuation(prompt).startswith(expected)
        assert int4.continuation(prompt).startswith(expected)


def test_sizes_and_compression(workdir: Workdir, table9: pl.DataFrame) -> None:
    summary = _artifact(workdir, "model/smollm2").json("model.json")["model"]
    assert summary["weights"] == {"bfloat16": PARAMETERS}
    assert summary["tied_head"] and summary["embedding_rows"] == 49_152
    bfloat16, int4 = table9.iter_rows(named=True)
    assert bfloat16["weight_bytes"] == 2 * PARAMETERS
    # Four bits a weight; to every group of 64 a scale in 16 bits and a zero point in 4; to every input of a layer the
    # number of its group in 32.
    groups, inputs = QUANTIZED_PARAMETERS // 64, 30 * (6 * 576 + 1536)
    packed = QUANTIZED_PARAMETERS * 4 // 8 + groups * 20 // 8 + inputs * 4
    assert int4["weight_bytes"] == packed + 2 * (PARAMETERS - QUANTIZED_PARAMETERS)
    quality = int4["average_performance"] / bfloat16["average_performance"]
    assert bfloat16["MCR"] == 1 and int4["MCR"] == pytest.approx(4 * quality, rel=1e-5)
    measured = bfloat16["weight_bytes"] / int4["weight_bytes"] * quality
    assert int4["mcr_measured"] == pytest.approx(measured, rel=1e-5)


def test_what_a_user_asks_of_the_results(workdir: Workdir, table9: pl.DataFrame) -> None:
    question = ["recommend", "results/table9.csv", "--max", "weight_bytes=150000000", "--json"]
    answer = json.loads(_effllm(workdir, *question, codes=(0, 3, 4)))
    # A row that others disturbed is no candidate.
    assert (answer["exit_code"] == 0) is (table9["status"][1] == "ok")
    assert answer["exit_code"] or "int4" in answer["answer"]
    status = _effllm(workdir, "status", "--study", "study.yaml")
    assert "evaluate           4       0       0       0       0" in status
    assert "SmolLM2-135M" in (workdir.path / "results/report.html").read_text()
