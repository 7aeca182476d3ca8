"""lm-eval runs the decoders as it runs any model of Transformers."""

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedTokenizerFast

from tests.unit.models.word_tokenizer import word_tokenizer

WORDS = [f"w{index}" for index in range(94)]


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return word_tokenizer(WORDS)


def request(kind: str, index: int, *arguments) -> Instance:
    return Instance(request_type=kind, doc={}, arguments=arguments, idx=index)


@pytest.mark.parametrize(("attention", "position"), [("gqa", "learned"), ("mla", "rope"), ("nsa", "relative")])
def test_batches_of_the_harness_score_and_generate_as_single_rows(attention, position, build, tokenizer):
    model = build(attention=attention, position=position)
    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=3, device="cpu", softmax_dtype="float32")
    pairs = [(" ".join(WORDS[:n]), " " + " ".join(WORDS[n : n + 3])) for n in (2, 9, 23)]
    scored = harness.loglikelihood([request("loglikelihood", i, *pair) for i, pair in enumerate(pairs)])
    for (context, continuation), (score, _) in zip(pairs, scored, strict=True):
        tokens = tokenizer(context + continuation, return_tensors="pt").input_ids
        with torch.no_grad():
            logits = model(tokens).logits.log_softmax(-1)
        expected = logits[0, -4:-1].gather(1, tokens[0, -3:, None]).sum().item()
        assert score == pytest.approx(expected, abs=1e-3)

    options = {"until": ["<eos>"], "max_gen_toks": 4, "do_sample": False}
    texts = harness.generate_until([request("generate_until", i, c, options) for i, (c, _) in enumerate(pairs)])
    for (context, _), text in zip(pairs, texts, strict=True):
        tokens = tokenizer(context, return_tensors="pt").input_ids
        alone = model.generate(tokens, max_new_tokens=4, do_sample=False, eos_token_id=1, pad_token_id=0)
        assert text.split() == tokenizer.decode(alone[0, tokens.shape[1] :], skip_special_tokens=True).split()
