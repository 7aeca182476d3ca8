"""Synthetic streams: a seed means the same ids, drawn as the study says, in the layout of every other stream."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from effllm.data.packing import build
from effllm.data.settings import SyntheticStream
from effllm.data.synthetic import draw
from effllm.data.tokens import PackedTokens
from effllm.errors import UserError
from effllm.runtime.artifact import Artifact
from effllm.runtime.stage import run
from effllm.stages import STAGES
from tests.conftest import spec_of


def _stream(**settings: Any) -> SyntheticStream:
    return SyntheticStream(**{"kind": "synthetic", "vocab_size": 50, "tokens": 20_000, **settings})


def _built(root: Path, **settings: Any) -> Artifact:
    spec = spec_of("tokens", _stream(**settings).plain())
    return run(STAGES["tokens"], build, spec=spec, inputs={}, output=root / "results" / "tokens" / "random")


def test_a_seed_means_the_same_ids_and_another_seed_means_others(tmp_path: Path) -> None:
    artifacts = [_built(tmp_path / str(index), seed=seed) for index, seed in enumerate((0, 0, 1))]
    digests = [artifact.manifest.payload["train.bin"].sha256 for artifact in artifacts]
    assert digests[0] == digests[1] != digests[2]


def test_the_stream_reads_like_any_other_and_says_why_it_cannot_be_scored(tmp_path: Path) -> None:
    tokens = PackedTokens.open(_built(tmp_path).directory, "train")
    assert (len(tokens), tokens.vocab_size, tokens.unscored) == (20_000, 50, "random tokens")
    assert len(tokens.sequences(64)) == 20_000 // 64
    assert [len(document) for document in tokens.documents()] == [20_000]
    with pytest.raises(UserError, match="held_out"):
        PackedTokens.open(tokens.directory, "held_out")


def test_large_vocabularies_take_four_bytes(tmp_path: Path) -> None:
    artifact = _built(tmp_path, vocab_size=151_936, tokens=1000)
    assert artifact.manifest.payload["train.bin"].size == 4000
    assert PackedTokens.open(artifact.directory, "train").ids.max() > 1 << 16


@pytest.mark.parametrize(("settings", "exponent"), [({}, 0.0), ({"distribution": "zipf", "exponent": 1.2}, 1.2)])
def test_ids_are_drawn_with_their_weights(settings: dict[str, Any], exponent: float) -> None:
    count = 400_000
    ids = np.concatenate(list(draw(_stream(tokens=count, **settings))))
    weights = np.arange(1, 51) ** -exponent
    expected = count * weights / weights.sum()
    observed = np.bincount(ids, minlength=50)
    assert len(observed) == 50
    # Within five standard deviations of a binomial count, for each of fifty.
    assert (np.abs(observed - expected) < 5 * np.sqrt(expected)).all()
