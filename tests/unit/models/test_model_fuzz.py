"""Any file of a model directory removed, emptied, cut short, swapped or with bytes changed: whole, or one sentence.

Bytes of weights in a local directory have nothing to be compared with: such a model is published as it is, and the
property is that nothing else changes. What the hub gives out is compared with the digests of its tree.
"""

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from effllm.errors import UserError
from effllm.models.loading import load_causal_lm, load_tokenizer
from tests.unit.models.foreign import import_model, write_model

Mutation = Callable[[Path], str]
# Keys that a configuration may have and this one has not.
ADDED = (
    *("quantization_config", "text_config", "sliding_window", "layer_types", "num_experts", "rope_scaling"),
    *("attn_implementation", "_attn_implementation", "torch_dtype", "auto_map", "transformers_weights"),
    *("tokenizer_class", "tokenizer_file", "chat_template", "model_max_length", "added_tokens_decoder"),
    *("extra_special_tokens", "unk_token", "add_bos_token"),
)
_PLACES = st.integers(0, 10**6)


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same model in one file of weights, and in several with an index."""
    root = tmp_path_factory.mktemp("whole")
    single, sharded = write_model(root / "single"), write_model(root / "sharded")
    load_causal_lm(single).save_pretrained(sharded, max_shard_size="40KB")
    (sharded / "model.safetensors").unlink()
    return {"single": single, "sharded": sharded}


@st.composite
def mutations(draw: st.DrawFn) -> tuple[str, Mutation]:
    """A directory to start from, and what happens to it; the mutation returns what it did."""
    start = draw(st.sampled_from(["single", "sharded"]))
    kind = draw(st.sampled_from(["remove", "empty", "cut", "swap", "flip", "repeat"]))
    place, other = draw(_PLACES), draw(_PLACES)
    where = draw(st.lists(_PLACES, min_size=1, max_size=4))
    # The header of weights is a small part of the file, and the part worth changing.
    in_header = draw(st.booleans())
    # Random bytes end in JSON that is none; those that it is made of may leave it whole, with another meaning.
    byte = draw(st.sampled_from([st.integers(0, 255), st.sampled_from(b'0123456789-.e",:[]{}')]))
    values = draw(st.lists(byte, min_size=len(where), max_size=len(where)))

    def mutate(directory: Path) -> str:
        files = sorted(directory.iterdir())
        path, second = files[place % len(files)], files[other % len(files)]
        content = path.read_bytes()
        if kind == "remove":
            path.unlink()
        elif kind == "empty":
            path.write_bytes(b"")
        elif kind == "cut":
            path.write_bytes(content[: where[0] % len(content)])
        elif kind == "swap":
            path.write_bytes(second.read_bytes())
            second.write_bytes(content)
        elif kind == "repeat":
            path.write_bytes(content + content)
        else:
            span = min(len(content), 3000) if in_header else len(content)
            changed = bytearray(content)
            for position, value in zip(where, values, strict=True):
                changed[position % span] = value
            path.write_bytes(bytes(changed))
        return f"{kind} {path.name}"

    return start, mutate


def import_or_sentence(directory: Path, results: Path) -> Path | None:
    """The published model, or None where the stage ended in one sentence."""
    try:
        return import_model(directory, results).directory / "model"
    except UserError as error:
        sentence = str(error)
        assert sentence.startswith("models.x"), sentence
        assert "\n" not in sentence
        assert len(sentence) < 400, sentence
        return None


def require_usable(published: Path) -> dict[str, torch.Tensor]:
    """The weights of what was published, which a later stage loads and runs."""
    model, tokenizer = load_causal_lm(published).eval(), load_tokenizer(published)
    ids = tokenizer("The quick brown fox", return_tensors="pt").input_ids
    assert model(ids).logits.shape[:2] == ids.shape
    return dict(model.state_dict())


@pytest.mark.slow
@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(case=mutations())
def test_a_damaged_directory_is_imported_whole_or_refused_in_a_sentence(
    case: tuple[str, Mutation], directories: dict[str, Path]
) -> None:
    start, mutate = case
    with tempfile.TemporaryDirectory() as root:
        directory = shutil.copytree(directories[start], Path(root) / "model")
        done = mutate(directory)
        published = import_or_sentence(directory, Path(root) / "results")
        event(f"{done}: {'published' if published else 'refused'}")
        if published is None:
            return
        weights = require_usable(published)
        stored = {}
        for path in directory.glob("*.safetensors"):
            stored |= load_file(path)
        torch.testing.assert_close(weights, stored, rtol=0, atol=0, equal_nan=True)
        if "safetensors" not in done:
            torch.testing.assert_close(weights, dict(load_causal_lm(directories[start]).state_dict()))


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([-1, 0, 1, 2, 3, 7, 2**31, 2**63, 10**30, -(10**30), 0.5, -0.5, 1e308, float("nan"), float("inf")]),
    st.sampled_from(["", "x", "float16", "fp8", "gelu", "../x", "eager", "flash_attention_2", "a/b", "\0", "\ud800"]),
    st.sampled_from([[], {}, [[]], ["x"], {"x": 1}, [None], [-1], {"rope_type": "x"}, {"factor": "x"}]),
)


@pytest.mark.slow
@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_odd_values_in_its_configurations_are_taken_or_refused_in_a_sentence(
    data: st.DataObject, directories: dict[str, Path]
) -> None:
    name = data.draw(st.sampled_from(["config.json"] * 4 + ["generation_config.json", "tokenizer_config.json"]))
    content = json.loads((directories["single"] / name).read_text())
    key = data.draw(st.sampled_from([*sorted(content), *ADDED]))
    value = data.draw(ODD)
    with tempfile.TemporaryDirectory() as root:
        directory = shutil.copytree(directories["single"], Path(root) / "model")
        (directory / name).write_text(json.dumps({**content, key: value}))
        published = import_or_sentence(directory, Path(root) / "results")
        event(f"{name} {key}: {'published' if published else 'refused'}")
        if published is not None:
            require_usable(published)
