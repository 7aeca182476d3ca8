"""Every decoder as it is saved and loaded again: a batch of unequal prompts gives what each prompt gives alone."""

from itertools import product
from pathlib import Path

import pytest
import torch
from lm_eval.api.instance import Instance
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from effllm.evaluation.metered import MeteredLM
from effllm.models.loading import load_causal_lm
from effllm.models.saving import save_causal_lm
from tests.unit.models.word_tokenizer import word_tokenizer

from .conftest import ATTENTIONS, POSITIONS

VARIANTS = list(product(ATTENTIONS, POSITIONS, ("swiglu", "moe")))
WORDS = [f"w{index}" for index in range(94)]
LENGTHS = (2, 9, 23)
NEW_TOKENS = 4


@pytest.fixture(params=VARIANTS, ids=["-".join(variant) for variant in VARIANTS])
def loaded(request, build, tmp_path: Path):
    """A decoder in the format in which the stages publish it, which is Transformers' own where there is one."""
    attention, position, feed_forward = request.param
    model = build(attention=attention, position=position, feed_forward=feed_forward, eos_token_id=1)
    save_causal_lm(model, tmp_path)
    return load_causal_lm(tmp_path).eval()


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return word_tokenizer(WORDS)


@torch.no_grad()
def test_a_padded_batch_decodes_and_scores_as_its_rows_alone(loaded, tokenizer):
    prompts = [" ".join(WORDS[: length + 1]) for length in LENGTHS]
    batch = tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt")
    greedy = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "use_cache": True, "pad_token_id": 0, "eos_token_id": 1}
    together = loaded.generate(batch.input_ids, attention_mask=batch.attention_mask, **greedy)
    alone = []
    for prompt, row in zip(prompts, together, strict=True):
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        alone.append(loaded.generate(ids, attention_mask=torch.ones_like(ids), **greedy)[0, ids.shape[1] :])
        assert row[batch.input_ids.shape[1] :].tolist()[: len(alone[-1])] == alone[-1].tolist()

    harness = MeteredLM(loaded, tokenizer, batch_size=len(prompts), max_length=None)
    harness.warm_up(generates=True)
    options = {"until": ["<eos>"], "max_gen_toks": NEW_TOKENS, "do_sample": False}
    asked = [Instance("generate_until", {}, (prompt, options), index) for index, prompt in enumerate(prompts)]
    texts = harness.generate_until(asked)
    assert [text.split() for text in texts] == [
        tokenizer.decode(ids, skip_special_tokens=True).split() for ids in alone
    ]

    continuation = " " + " ".join(WORDS[40:43])
    asked = [Instance("loglikelihood", {}, (prompt, continuation), index) for index, prompt in enumerate(prompts)]
    for prompt, (score, _) in zip(prompts, harness.loglikelihood(asked), strict=True):
        ids = tokenizer(prompt + continuation, return_tensors="pt").input_ids
        logits = loaded(ids).logits[0, -4:-1].log_softmax(-1)
        assert score == pytest.approx(logits.gather(1, ids[0, -3:, None]).sum().item(), abs=1e-3)


def test_a_mixture_of_transformers_that_asks_for_its_routers_logits_decodes_padded(tmp_path: Path):
    """Such a config.json comes from somebody's training: Mixtral of the hub as well as our own exports."""
    shape = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4}
    torch.manual_seed(0)
    config = AutoConfig.for_model("mixtral", **shape, **heads, output_router_logits=True, initializer_range=0.2)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    model = load_causal_lm(tmp_path).eval()
    ids = torch.tensor([[0, 0, 5, 6], [7, 8, 9, 10]])
    greedy = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "pad_token_id": 0, "eos_token_id": 1}
    together = model.generate(ids, attention_mask=(ids != 0).long(), **greedy)
    alone = model.generate(ids[:1, 2:], attention_mask=torch.ones(1, 2, dtype=torch.long), **greedy)
    assert together[0, 4:].tolist() == alone[0, 2:].tolist()
