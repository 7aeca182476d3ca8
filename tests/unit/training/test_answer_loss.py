"""The loss of held-out answers, and its error over prompts."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from effllm.data.instructions.batches import Collate
from effllm.data.instructions.encoding import IGNORED, EncodedSample, TrainingSequence
from effllm.training.answer_loss import answer_loss


class Guess(nn.Module):
    """Gives each token id a fixed logit, whatever came before."""

    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([0.0, 1.0, 2.0, 3.0]))

    def forward(self, input_ids, **_):
        return SimpleNamespace(logits=self.logits.expand(*input_ids.shape, 4))


def sample(id, prompt, answer):
    ids = np.array(prompt + answer, dtype=np.int32)
    labels = np.array([IGNORED] * len(prompt) + answer, dtype=np.int32)
    return TrainingSequence((EncodedSample(id, ids, labels),))


def test_answers_to_one_prompt_are_one_cluster_and_every_sample_is_kept():
    sequences = [
        sample("aa", [1, 1], [3]),
        sample("bb", [1], [0, 1, 3]),
        sample("aa#2", [1, 1], [2, 2]),
        sample("cc", [2], [1]),
    ]
    nats = -torch.log_softmax(Guess().logits.double(), -1).detach().numpy()
    expected = [
        ("aa", nats[3], 1),
        ("bb", nats[0] + nats[1] + nats[3], 3),
        ("aa#2", 2 * nats[2], 2),
        ("cc", nats[1], 1),
    ]
    found = answer_loss(Guess(), sequences, Collate(0, False), 2, "float32", "held out")
    assert [(id, tokens) for id, _, tokens in found.by_sample] == [(id, tokens) for id, _, tokens in expected]
    assert [nll for _, nll, _ in found.by_sample] == pytest.approx([nll for _, nll, _ in expected])
    assert (found.tokens, found.samples) == (7, 4)
    mean = sum(nll for _, nll, _ in expected) / 7
    assert found.loss == pytest.approx(mean)
    clusters = [(nats[3] + 2 * nats[2], 3), expected[1][1:], expected[3][1:]]
    squares = sum((nll - mean * tokens) ** 2 for nll, tokens in clusters)
    assert found.loss_stderr == pytest.approx(math.sqrt(squares * 3 / 2) / 7)
