"""What jobs ask for grows with what they do, and nothing heavy is imported to compute it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from effllm.cluster.requests import GPU_STAGES, Request, request
from effllm.stages import STAGES
from effllm.study import Study, load_study, parse_study
from tests.conftest import REPOSITORY
from tests.unit.cluster.manifests import checkpoint, imported, manifest, variant

PAPER = load_study(REPOSITORY / "config" / "paper.yaml")
PRECISIONS = load_study(REPOSITORY / "config" / "precisions.yaml")
FINETUNED = PAPER.finetuning[PAPER.tables.table7.suite].nodes(PAPER.tables.table7.suite)[0]


@pytest.mark.parametrize("stage", ["quantize", "evaluate", "profile"])
def test_a_larger_model_gets_more_time_and_memory(tmp_path: Path, stage: str) -> None:
    id = {"quantize": "qwen2.5-32b.int4", "evaluate": "qwen2.5-32b.int4.bbh", "profile": "qwen2.5-32b.int4"}[stage]
    small, large = (request(PAPER, stage, id, {"model": variant(tmp_path, size)}, cores=72) for size in (3.0, 65.0))
    assert small.minutes < large.minutes and small.memory_mb < large.memory_mb
    # A node of the paper's cluster and the length of a partition of a day hold the largest.
    assert large.memory_mb <= 480_000 and large.minutes <= 24 * 60
    # The weights alone must fit the host.
    assert large.memory_mb > 65_000


def test_int4_models_are_timed_by_their_parameters_and_not_their_bytes(tmp_path: Path) -> None:
    whole = request(PAPER, "evaluate", "qwen2.5-32b.bfloat16.bbh", {"model": variant(tmp_path, 64.0)}, cores=72)
    packed = request(
        PAPER, "evaluate", "qwen2.5-32b.bfloat16.bbh", {"model": variant(tmp_path, 16.0, bits=4)}, cores=72
    )
    assert packed.minutes == whole.minutes
    assert packed.memory_mb < whole.memory_mb


@pytest.mark.parametrize("stage", ["evaluate", "profile"])
def test_a_model_gets_as_many_gpus_as_its_bytes_need(tmp_path: Path, stage: str) -> None:
    id = "qwen2.5-32b.bfloat16" + (".bbh" if stage == "evaluate" else "")

    def gpus(gigabytes: float, memory_b: float | None, study: Study = PAPER) -> int:
        inputs = {"model": variant(tmp_path, gigabytes)}
        return request(study, stage, id, inputs, cores=16, gpu_memory_b=memory_b).gpus_per_node

    assert [gpus(size, 80e9) for size in (15.0, 75.0, 145.0)] == [1, 2, 3]
    assert [gpus(size, 141e9) for size in (15.0, 75.0, 145.0)] == [1, 1, 2]
    # Where the profile does not say what a GPU has, one is asked for.
    assert gpus(145.0, None) == 1
    asked = PAPER.model_copy(deep=True)
    asked.models["qwen2.5-32b"].__dict__["devices"] = 4
    assert gpus(15.0, 80e9, asked) == gpus(15.0, None, asked) == 4


def test_quantizing_gets_the_gpus_that_hold_the_result(tmp_path: Path) -> None:
    def gpus(precision: str, gigabytes: float) -> int:
        inputs = {"model": imported(tmp_path, gigabytes, "bfloat16")}
        id = f"qwen2.5-14b.{precision}"
        return request(PRECISIONS, "quantize", id, inputs, cores=16, gpu_memory_b=80e9).gpus_per_node

    # 145 GB in 16 bits are 72.5 in 8 and 41 in NF4; casts work on the host.
    assert [gpus(name, 145.0) for name in ("llm-int8", "fp8", "nf4", "bfloat16")] == [2, 2, 1, 1]
    assert [gpus(name, 290.0) for name in ("llm-int8", "gptq-8bit", "nf4", "bfloat16")] == [3, 3, 2, 1]


@pytest.mark.parametrize("stage", ["quantize", "finetune"])
def test_an_imported_model_is_timed_by_the_weights_that_its_record_counts(tmp_path: Path, stage: str) -> None:
    id = {"quantize": "qwen2.5-7b.int4", "finetune": FINETUNED}[stage]
    instructions = manifest(tmp_path / "instructions", "instructions", {}, {})
    counts = {"splits": {"train": {"samples": 100_000, "answers": 1, "answer_utf8_bytes": 1}}}
    (tmp_path / "instructions" / "instructions.json").write_text(json.dumps(counts))

    def asked(model: str) -> Request:
        return request(PAPER, stage, id, {"model": model, "instructions": instructions}, cores=72)

    half, full = asked(imported(tmp_path, 14.0, "bfloat16")), asked(imported(tmp_path, 28.0, "float32"))
    assert full.minutes == half.minutes < asked(imported(tmp_path, 28.0, "bfloat16")).minutes
    # A job reads the bytes; training holds a type of its own.
    assert full.memory_mb == half.memory_mb if stage == "finetune" else full.memory_mb > half.memory_mb


@pytest.mark.parametrize("stage", ["merge", "finetune"])
def test_a_model_made_of_another_has_the_type_that_its_configuration_names(tmp_path: Path, stage: str) -> None:
    def minutes(dtype: str | None, gigabytes: float) -> int:
        model = manifest(tmp_path / f"{dtype}", stage, {}, checkpoint(gigabytes))
        (tmp_path / f"{dtype}" / "model").mkdir()
        (tmp_path / f"{dtype}" / "model" / "config.json").write_text(json.dumps({"dtype": dtype}))
        return request(PAPER, "quantize", "qwen2.5-7b.int4", {"model": model}, cores=72).minutes

    assert minutes("float32", 28.0) == minutes("bfloat16", 14.0) == minutes(None, 14.0)


def test_a_parent_that_is_not_built_yet_is_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        request(PAPER, "quantize", "qwen2.5-7b.int4", {"model": str(tmp_path / "manifest.json")}, cores=72)


def _pretraining(tiny: dict[str, Any], **changes: Any) -> Request:
    tiny["pretraining"]["llama-1m"] |= changes
    return request(parse_study(tiny, "test"), "pretrain", "llama-1m", {}, cores=72)


def test_training_is_timed_by_its_flops_and_devices(tiny: dict[str, Any]) -> None:
    assert _pretraining(tiny).minutes == 60
    shape = {
        "model_type": "llama",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "max_position_embeddings": 2048,
    }
    changes = {
        "architecture": shape,
        "sequence_length": 2048,
        "global_batch_size": 512,
        "max_steps": 10_000,
        "dtype": "bfloat16",
    }
    single = _pretraining(tiny, **changes)
    # 6 FLOPs for each of 1.6e9 parameters and 1.05e10 tokens are 1e20, at 2e14 a second 5.8 days; attention comes
    # on top.
    assert 120 < single.minutes / 60 < 170
    spread = _pretraining(tiny, parallel={"strategy": "ddp", "devices": 4, "nodes": 2})
    assert (spread.minutes - 60) * 8 == pytest.approx(single.minutes - 60, rel=0.02)
    assert (spread.nodes, spread.gpus_per_node) == (2, 4)
    assert spread.memory_mb > 2 * single.memory_mb
    assert "--exclusive" in spread.options and "--exclusive" not in single.options
    offloaded = _pretraining(tiny, parallel={"strategy": "zero2", "devices": 4, "offload": True})
    assert offloaded.memory_mb > _pretraining(tiny, parallel={"strategy": "zero2", "devices": 4}).memory_mb


def test_training_is_warned_and_profiling_alone(tmp_path: Path, tiny: dict[str, Any]) -> None:
    assert any(option.startswith("--signal=TERM@") for option in _pretraining(tiny).options)
    profile = request(PAPER, "profile", "qwen2.5-7b.int4", {"model": variant(tmp_path, 15.0)}, cores=72)
    assert profile.options == ("--exclusive",)


def test_requests_import_neither_torch_nor_transformers() -> None:
    program = "import sys, effllm.cluster.requests; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "[]"


def test_gpu_stages_exist() -> None:
    assert set(GPU_STAGES) <= set(STAGES)
