"""Samples of random token ids in place of conversations: drawn from a seed, encoded already.

An instructions artifact of this kind holds `train.npy`, int32 (samples, tokens), and `instructions.json` with
prompt_tokens, vocab_size, and `unscored`: why nothing that is trained on them has a loss worth printing.
"""

from pathlib import Path

import numpy as np

from effllm.data.instructions.encoding import DROPPED, IGNORED, NOT_LEARNED, Encoded, EncodedSample, TrainingSequence
from effllm.data.instructions.settings import SyntheticInstructionSource
from effllm.data.synthetic import RANDOM_TOKENS
from effllm.data.writing import named_errors
from effllm.errors import UserError
from effllm.results.data import InstructionsSummary
from effllm.runtime.stage import Job

_SAMPLES = "train.npy"


def write_synthetic(job: Job, source: SyntheticInstructionSource) -> None:
    """Draw the samples."""
    generator = np.random.Generator(np.random.PCG64(source.seed))
    shape = (source.samples, source.prompt_tokens + source.answer_tokens)
    with named_errors(job.output / _SAMPLES):
        np.save(job.output / _SAMPLES, generator.integers(source.vocab_size, size=shape).astype(np.int32))
    job.write(
        InstructionsSummary(prompt_tokens=source.prompt_tokens, unscored=RANDOM_TOKENS, vocab_size=source.vocab_size)
    )


def read_synthetic(directory: Path, prompt_tokens: int, sequence_length: int) -> Encoded:
    """The samples as training sequences; `UserError` if they are longer than `sequence_length`."""
    ids = np.load(directory / _SAMPLES)
    count, length = ids.shape
    if length > sequence_length:
        raise UserError(
            f"the synthetic samples have {length} tokens, more than encoding.sequence_length {sequence_length}: raise "
            "it, or make them shorter."
        )
    labels = ids.copy()
    labels[:, :prompt_tokens] = IGNORED
    sequences = [
        TrainingSequence((EncodedSample(f"{index:016x}", ids[index], labels[index]),)) for index in range(count)
    ]
    counts = {
        "samples": count,
        "sequences": count,
        "tokens": ids.size,
        "answer_tokens": count * (length - prompt_tokens),
        "truncated": 0,
        "dropped": dict.fromkeys(DROPPED, 0),
        "not_learned": dict.fromkeys(NOT_LEARNED, 0),
        "other_prompts": 0,
    }
    return Encoded(sequences, counts)
