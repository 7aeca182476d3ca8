"""Batches: padding, packing that keeps samples apart, and the log of consumed samples."""

from pathlib import Path

import numpy as np
import pytest
import torch
from instruction_tokenizers import byte_level
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from effllm.data.instructions.batches import (
    Collate,
    ConsumedSamples,
    SequenceDataset,
    require_separate_samples,
    take_indices,
)
from effllm.data.instructions.encoding import IGNORED, Encoded, encode
from effllm.data.instructions.samples import Message, Sample
from effllm.data.instructions.settings import Encoding
from effllm.data.instructions.templates import set_template
from effllm.errors import UserError
from effllm.models.decoder import EffConfig, EffForCausalLM

PAD = 0
SHAPE = {
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    # Large enough that attention matters.
    "initializer_range": 0.3,
    "use_cache": False,
}


def llama(**changes: object) -> PreTrainedModel:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE | changes))


def qwen2(**changes: object) -> PreTrainedModel:
    torch.manual_seed(0)
    return Qwen2ForCausalLM(Qwen2Config(**SHAPE | changes))


def encoded(packing: bool) -> Encoded:
    samples = [
        Sample(str(n), (Message("user", "What? " * (n % 4 + 1)), Message("assistant", f"It is {n}. " * (n % 5 + 1))))
        for n in range(12)
    ]
    tokenizer = byte_level()
    encoding = Encoding(template="plain", sequence_length=160, packing=packing)
    set_template(tokenizer, encoding, "test")
    return encode(samples, tokenizer, encoding)


def loss_sums(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> tuple[float, int]:
    """Sum of the losses of the labels that count, by the model's own shift, and their number."""
    labels = batch["labels"]
    count = int((labels[:, 1:] != IGNORED).sum())
    return model(**batch).loss.item() * count, count


@pytest.mark.parametrize("family", [llama, qwen2])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_samples_have_the_losses_they_have_alone(family: type, attention: str) -> None:
    model = family(attn_implementation=attention).train()
    alone = [
        loss_sums(
            model,
            {
                name: torch.from_numpy(array[None]).long()
                for name, array in (("input_ids", s.input_ids), ("labels", s.labels))
            },
        )
        for sequence in encoded(packing=False).sequences
        for s in sequence.samples
    ]
    packed = SequenceDataset(encoded(packing=True).sequences)
    assert len(packed) < 12 and max(len(sequence.samples) for sequence in packed.sequences) > 1
    batch = Collate(PAD, packing=True)([packed[index] for index in range(len(packed))])
    take_indices(batch)
    total, count = loss_sums(model, batch)
    assert count == sum(c for _, c in alone)
    assert total == pytest.approx(sum(t for t, _ in alone), rel=1e-5)


def test_padded_samples_have_the_losses_they_have_alone() -> None:
    model = llama()
    dataset = SequenceDataset(encoded(packing=False).sequences)
    collate = Collate(PAD, packing=False)
    batches = [[dataset[index]] for index in range(12)] + [[dataset[index] for index in range(12)]]
    sums = []
    for batch in map(collate, batches):
        take_indices(batch)
        sums.append(loss_sums(model, batch)[0])
    assert sums[-1] == pytest.approx(sum(sums[:-1]), rel=1e-5)


def test_rows_are_padded_to_the_longest_of_the_batch_with_labels_that_do_not_count() -> None:
    dataset = SequenceDataset(encoded(packing=False).sequences)
    batch = Collate(PAD, packing=False)([dataset[3], dataset[1]])
    assert take_indices(batch) == [3, 1] and set(batch) == {"input_ids", "labels", "attention_mask"}
    lengths = [len(dataset.sequences[index]) for index in (3, 1)]
    assert batch["input_ids"].shape == (2, max(lengths)) and len(set(lengths)) == 2
    for row, (index, length) in enumerate(zip((3, 1), lengths, strict=True)):
        sample = dataset.sequences[index].samples[0]
        assert batch["input_ids"][row, :length].tolist() == sample.input_ids.tolist()
        assert batch["labels"][row, :length].tolist() == sample.labels.tolist()
        assert (batch["input_ids"][row, length:] == PAD).all() and (batch["labels"][row, length:] == IGNORED).all()
        assert batch["attention_mask"][row].tolist() == [1] * length + [0] * (max(lengths) - length)


def test_positions_of_packed_samples_start_anew_with_each() -> None:
    packed = SequenceDataset(encoded(packing=True).sequences)
    batch = Collate(PAD, packing=True)([packed[index] for index in range(len(packed))])
    assert "attention_mask" not in batch
    for row, sequence in zip(batch["position_ids"].tolist(), packed.sequences, strict=True):
        lengths = [len(sample) for sample in sequence.samples]
        lengths.append(len(row) - sum(lengths))
        assert row == [position for length in lengths for position in range(length)]
    # A first label would be predicted from the end of the sample before.
    assert all(sample.labels[0] == IGNORED for sequence in packed.sequences for sample in sequence.samples)


@pytest.mark.parametrize("family", [llama, qwen2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spread", [0.02, 0.3])
def test_models_whose_mask_follows_the_positions_may_pack(family: type, dtype: torch.dtype, spread: float) -> None:
    require_separate_samples(family(initializer_range=spread).to(dtype))


@pytest.mark.parametrize("spread", [0.02, 0.3])
def test_a_cache_a_recurrent_state_or_a_mask_of_its_own_is_refused(spread: float) -> None:
    shape = {"vocab_size": 512, "hidden_size": 32, "num_hidden_layers": 2, "initializer_range": spread}
    own = EffConfig(**SHAPE | {"initializer_range": spread, "position": "relative"})
    for model in (
        llama(use_cache=True, initializer_range=spread),
        MambaForCausalLM(MambaConfig(**shape)),
        EffForCausalLM(own),
    ):
        with pytest.raises(UserError, match=r"samples of one sequence see each other in \w+ForCausalLM .*set packing"):
            require_separate_samples(model)


def test_consumed_samples_are_logged_by_step_and_survive_a_resume(tmp_path: Path) -> None:
    dataset = SequenceDataset(encoded(packing=True).sequences)
    order = np.random.default_rng(0).permutation(len(dataset)).tolist()

    def run(log: ConsumedSamples, steps: list[int]) -> ConsumedSamples:
        for index in steps:
            log.add([index])
            log.add([index, order[0]])
            log.end_step()
        return log

    whole = run(ConsumedSamples(dataset), order)
    run(ConsumedSamples(dataset), order[:2]).save(tmp_path / "checkpoint")
    resumed = ConsumedSamples(dataset)
    resumed.load(tmp_path / "checkpoint")
    run(resumed, order[2:]).save(tmp_path / "resumed")
    assert ConsumedSamples.read(tmp_path / "resumed") == whole.steps
    first = dataset.sequences[order[1]].ids
    assert whole.steps[1] == first + first + dataset.sequences[order[0]].ids


def test_logs_of_several_ranks_are_merged_step_by_step(tmp_path: Path) -> None:
    dataset = SequenceDataset(encoded(packing=False).sequences)
    paths = []
    for rank in range(2):
        log = ConsumedSamples(dataset)
        for step in range(3):
            log.add([step * 4 + rank, step * 4 + rank + 2])
            log.end_step()
        paths.append(tmp_path / f"{rank}.jsonl")
        log.save(paths[-1])
    ConsumedSamples.merge(paths, tmp_path / "all.jsonl")
    assert ConsumedSamples.read(tmp_path / "all.jsonl") == [
        [str(4 * step + offset) for offset in (0, 2, 1, 3)] for step in range(3)
    ]
