"""A model of a few thousand weights as stage `quantize` leaves it."""

from pathlib import Path
from typing import Any

import pytest

from effllm.results.quantization import Quantization, WeightBytes
from effllm.runtime.artifact import Artifact
from effllm.runtime.stage import Job, run
from effllm.stages import STAGES

WORDS = 300
PRECISION = {"kind": "cast", "dtype": "bfloat16"}


def small_model() -> Any:
    """A decoder with random weights, wide apart, so that it says different things to different prompts."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        "llama",
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=WORDS,
        max_position_embeddings=128,
        # Half of what it says would end an answer.
        eos_token_id=list(range(WORDS // 2)),
        pad_token_id=0,
        initializer_range=0.3,
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture(scope="session")
def variant(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The artifact."""

    def build(job: Job) -> None:
        import torch

        small_model().to(torch.bfloat16).save_pretrained(job.output / "model")
        weights = WeightBytes(
            bytes=10**5, quantized_layers=0, quantized_layers_bytes=None, quantized_layers_bytes_16_bit=None
        )
        job.write(Quantization(nominal_bits=16, precision=PRECISION, weights=weights))

    stage = STAGES["quantize"]
    spec = {"stage": "quantize", "version": stage.version, "config": {"precision": PRECISION}}
    output: Path = tmp_path_factory.mktemp("serving") / "results" / "quantize" / "small.bfloat16"
    return run(stage, build, spec=spec, inputs={}, output=output)
