"""Decoding that is measured or scored is the study's: a plain argmax, whatever the model's files ask of generation."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from transformers import AutoConfig, AutoModelForCausalLM

from effllm.evaluation.metered import MeteredLM
from effllm.models.greedy import decode_greedily
from effllm.models.loading import keep_refused_generation, load_causal_lm, load_tokenizer
from effllm.profiling.decoding import TimedDecoding
from effllm.quantization.cast import CastPrecision, cast
from effllm.telemetry.validity import check_generation_settings
from tests.unit.models.word_tokenizer import word_tokenizer

WORDS = [f"w{index}" for index in range(94)]
EOS, PROMPT_TOKENS, NEW_TOKENS = 1, 5, 12
ASKED = {
    "num_beams": 3,
    "do_sample": True,
    "temperature": 3.0,
    "top_k": 4,
    "repetition_penalty": 5.0,
    "no_repeat_ngram_size": 1,
    "forced_bos_token_id": 7,
    "forced_eos_token_id": 8,
    "min_length": 20,
    "max_length": 5,
    "min_new_tokens": 3,
    "max_new_tokens": 2,
    "stop_strings": ["w1", "w2"],
    "suppress_tokens": list(range(10, 60)),
    "begin_suppress_tokens": list(range(50)),
    "bad_words_ids": [[index] for index in range(30, 90)],
    "sequence_bias": [[[5], 50.0]],
    "guidance_scale": 2.0,
    "exponential_decay_length_penalty": [1, 2.0],
    "cache_implementation": "static",
    "num_return_sequences": 2,
    "output_scores": True,
    "return_dict_in_generate": True,
    "penalty_alpha": 0.6,
    "prompt_lookup_num_tokens": 3,
    "max_time": 1e-6,
    "eos_token_id": list(range(10, 60)),
    "remove_invalid_values": True,
}
# Those that config.json files of old hold.
LEGACY = (
    "num_beams",
    "do_sample",
    "temperature",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "suppress_tokens",
    "min_length",
    "bad_words_ids",
    "forced_eos_token_id",
    "return_dict_in_generate",
    "num_return_sequences",
)
PLACES = ("generation_config.json", "config.json", "neither")


@pytest.fixture(params=PLACES)
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A model whose files ask for much, or for nothing at all, not even for an end-of-text token."""
    torch.manual_seed(2)
    config = AutoConfig.for_model(
        "llama",
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=97,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=None,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink(missing_ok=True)
    word_tokenizer(WORDS).save_pretrained(tmp_path)
    if request.param == "generation_config.json":
        (tmp_path / "generation_config.json").write_text(json.dumps(ASKED))
    elif request.param == "config.json":
        content = json.loads((tmp_path / "config.json").read_text())
        content |= {key: ASKED[key] for key in LEGACY} | {"eos_token_id": ASKED["eos_token_id"]}
        (tmp_path / "config.json").write_text(json.dumps(content | {"output_hidden_states": True}))
    return tmp_path


def _argmax(model: Any, prompt: torch.Tensor, steps: int, without: tuple[int, ...] = ()) -> torch.Tensor:
    ids = prompt
    with torch.inference_mode():
        for _ in range(steps):
            logits = model(ids).logits[:, -1]
            logits[:, list(without)] = -torch.inf
            ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
    return ids


def test_a_profile_decodes_by_plain_argmax(directory: Path) -> None:
    model = load_causal_lm(directory).eval()
    decode_greedily(model, load_tokenizer(directory))
    prompt = torch.randint(3, 97, (2, PROMPT_TOKENS), generator=torch.Generator().manual_seed(0))
    timed = TimedDecoding(model, prompt, NEW_TOKENS, "cpu")
    assert timed.run().generated_tokens == 2 * NEW_TOKENS
    got = model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=timed.config)
    assert torch.equal(got, _argmax(model, prompt, NEW_TOKENS, without=(EOS,)))


def test_timed_decoding_by_itself_leaves_the_model_s_settings_out(directory: Path) -> None:
    model = load_causal_lm(directory).eval()
    ends = model.generation_config.eos_token_id or []
    prompt = torch.randint(3, 97, (2, PROMPT_TOKENS), generator=torch.Generator().manual_seed(0))
    timed = TimedDecoding(model, prompt, NEW_TOKENS, "cpu")
    got = model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=timed.config)
    assert torch.equal(got, _argmax(model, prompt, NEW_TOKENS, without=tuple(ends)))


def test_an_evaluation_decodes_by_plain_argmax_up_to_the_tokenizer_s_end_of_text(directory: Path) -> None:
    model, tokenizer = load_causal_lm(directory).eval(), load_tokenizer(directory)
    prompt = [17, 40, 61]
    # End-of-text follows where the sixth token would have been.
    sixth = _argmax(model, torch.tensor([prompt]), 6)[0]
    with torch.no_grad():
        head, body = model.lm_head.weight, model.model(sixth[None, :-1]).last_hidden_state[0, -1]
        head[EOS] = 3 * body / body.norm() * head.norm(dim=1).max()
    prompts = [prompt, [50, 9, 33]]
    decoded = _argmax(model, torch.tensor(prompts), NEW_TOKENS)[:, len(prompt) :].tolist()
    until_end = [ids[: ids.index(EOS)] for ids in decoded]
    # The shorter row is decoded on until the longer one has ended.
    assert len(until_end[0]) != len(until_end[1])
    harness = MeteredLM(model, tokenizer, batch_size=2, max_length=None)
    harness.warm_up(generates=True)
    options = {"until": ["never"], "max_gen_toks": NEW_TOKENS, "do_sample": False}
    asked = [(tokenizer.decode(ids), options) for ids in prompts]
    texts = harness.generate_until([Instance("generate_until", {}, one, index) for index, one in enumerate(asked)])
    assert [text.split() for text in texts] == [tokenizer.decode(ids).split() for ids in until_end]
    assert harness.meter.total().generated_tokens == sum(len(ids) + 1 for ids in until_end)


@pytest.mark.parametrize("directory", ["generation_config.json"], indirect=True)
def test_what_was_ignored_is_named(directory: Path) -> None:
    model, tokenizer = load_causal_lm(directory).eval(), load_tokenizer(directory)
    ignored = decode_greedily(model, tokenizer)
    assert ignored == {key: ASKED[key] for key in sorted(ASKED)}
    assert decode_greedily(model, tokenizer) == ignored
    (finding,) = check_generation_settings(ignored)
    assert finding.severity == "warning"
    assert "num_beams 3" in finding.message and "do_sample True" in finding.message
    assert check_generation_settings({}) == []


@pytest.mark.parametrize("directory", ["generation_config.json"], indirect=True)
def test_turns_end_where_the_files_say_as_well(directory: Path) -> None:
    model, tokenizer = load_causal_lm(directory).eval(), load_tokenizer(directory)
    own = ASKED["eos_token_id"]
    ignored = decode_greedily(model, tokenizer, ends_turns=True)
    assert model.generation_config.eos_token_id == [tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])]
    assert ignored == {key: ASKED[key] for key in sorted(ASKED) if key != "eos_token_id"}


@pytest.mark.parametrize("directory", ["config.json"], indirect=True)
def test_generation_keys_of_an_old_configuration_are_named_too(directory: Path) -> None:
    ignored = decode_greedily(load_causal_lm(directory), load_tokenizer(directory))
    assert set(ignored) == {*LEGACY, "eos_token_id", "output_hidden_states"}


@pytest.mark.parametrize("directory", ["neither"], indirect=True)
def test_what_transformers_writes_into_every_file_is_not_named(directory: Path) -> None:
    written = {"output_attentions": False, "output_hidden_states": False, "use_cache": True}
    (directory / "generation_config.json").write_text(json.dumps(written))
    assert decode_greedily(load_causal_lm(directory), load_tokenizer(directory)) == {}


@pytest.mark.parametrize("directory", ["neither"], indirect=True)
@pytest.mark.parametrize(
    ("file", "refused"),
    [
        ("generation_config.json", {"num_return_sequences": 3}),
        ("generation_config.json", {"early_stopping": "maybe"}),
        ("generation_config.json", {"cache_implementation": "of no kind"}),
        ("config.json", {"num_return_sequences": 3}),
        ("config.json", {"early_stopping": "maybe"}),
    ],
    ids=str,
)
def test_settings_that_transformers_refuses_are_left_out_as_well(
    directory: Path, file: str, refused: dict[str, Any], tmp_path: Path
) -> None:
    own = json.loads((directory / file).read_text()) if file == "config.json" else {}
    (directory / file).write_text(json.dumps(own | refused))
    model = load_causal_lm(directory).eval()
    if file == "generation_config.json":
        assert decode_greedily(model, load_tokenizer(directory)) == refused
    prompt = torch.randint(3, 97, (2, PROMPT_TOKENS), generator=torch.Generator().manual_seed(0))
    timed = TimedDecoding(model, prompt, NEW_TOKENS, "cpu")
    got = model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=timed.config)
    assert torch.equal(got, _argmax(model, prompt, NEW_TOKENS))
    cast(directory, tmp_path / "cast", CastPrecision(kind="cast", dtype="bfloat16"))
    keep_refused_generation(directory, tmp_path / "cast")
    if file == "generation_config.json":
        assert decode_greedily(load_causal_lm(tmp_path / "cast"), load_tokenizer(directory)) == refused


@pytest.mark.parametrize("directory", ["neither"], indirect=True)
def test_a_model_that_asks_for_no_cache_is_told_that_it_gets_one(directory: Path) -> None:
    (directory / "generation_config.json").write_text('{"use_cache": false}')
    assert decode_greedily(load_causal_lm(directory), load_tokenizer(directory)) == {"use_cache": False}


def test_without_a_tokenizer_no_text_ends(directory: Path) -> None:
    """Random weights have none, and for some families Transformers cannot make an empty one up."""
    model = load_causal_lm(directory)
    decode_greedily(model, None)
    assert model.generation_config.eos_token_id is None and model.generation_config.pad_token_id == 0
