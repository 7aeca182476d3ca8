"""Exactly one begin-of-text token before what is scored or continued, where the tokenizer's convention has one."""

import math

import pytest
import torch
from conftest import END, evaluate_model, held_out_benchmark, make_model, rows_of, tiny_llama
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from effllm.data.tokenizer import begin_of_text

TEXTS = ["The function returns a list of names.", "An iterator yields one item at a time, and then it ends."]
TEMPLATE = "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"


def llama3(texts):
    """Byte-level, and a template that puts the token before every text."""
    return _byte_level(texts, "<|begin_of_text|>", "<|begin_of_text|> $A")


def ending(texts):
    """As Llama 3, but every text is ended too."""
    return _byte_level(texts, "<|begin_of_text|>", f"<|begin_of_text|> $A {END}")


def gpt2(texts):
    """The token is named, and is that of the end, but no text gets it by itself."""
    return _byte_level(texts, END, None)


def qwen2(texts):
    """There is no such token."""
    return _byte_level(texts, None, None)


def gemma(texts):
    """Spaces are letters, unknown letters are bytes, and a template puts the token before every text."""
    bpe = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    bpe.normalizer = normalizers.Replace(" ", "▁")
    bpe.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special[:4], show_progress=False)
    bpe.add_tokens([AddedToken(token, normalized=False) for token in special[4:]])
    bpe.train_from_iterator(texts, trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", bpe.token_to_id("<bos>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", model_max_length=2048
    )


def _byte_level(texts, bos, template):
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = list(dict.fromkeys([END, *([bos] if bos else [])]))
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    if template:
        bpe.post_processor = processors.TemplateProcessing(
            single=template,
            pair=template + " $B",
            special_tokens=[(token, bpe.token_to_id(token)) for token in special],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=bos, eos_token=END, pad_token=END, model_max_length=2048
    )


FAMILIES = {family.__name__: family for family in (llama3, ending, gemma, gpt2, qwen2)}
ADDS = ("llama3", "ending", "gemma")


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, texts):
    """(name, tokenizer, model of random weights, that model behind the meter)."""
    from effllm.evaluation.metered import MeteredLM

    tokenizer = FAMILIES[request.param](texts[1][:20])
    model = tiny_llama(tokenizer, seed=5, context=64).eval()
    return request.param, tokenizer, model, MeteredLM(model, tokenizer, batch_size=3, max_length=None)


def plain(tokenizer, text):
    return tokenizer._tokenizer.encode(text, add_special_tokens=False).ids


def start(name, tokenizer):
    """What the first token of a text is conditioned on, and whether a prompt begins with it."""
    named = {"llama3": "<|begin_of_text|>", "ending": "<|begin_of_text|>", "gemma": "<bos>", "gpt2": END, "qwen2": END}
    return tokenizer._tokenizer.token_to_id(named[name]), name in ADDS


def log_likelihood(model, context, continuation):
    with torch.no_grad():
        logits = model(torch.tensor([[*context, *continuation[:-1]]])).logits[0, len(context) - 1 :]
    return torch.log_softmax(logits.float(), -1).gather(1, torch.tensor(continuation)[:, None]).sum().item()


def requests(kind, *arguments):
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, given, index) for index, given in enumerate(arguments)]


def test_the_convention_is_read_from_the_tokenizer(family):
    name, tokenizer, _, _ = family
    token, adds = start(name, tokenizer)
    assert begin_of_text(tokenizer) == ([token] if adds else [])


def test_rolling_likelihood_conditions_on_one_token_and_does_not_score_it(family):
    name, tokenizer, model, lm = family
    token, _ = start(name, tokenizer)
    expected = [log_likelihood(model, [token], plain(tokenizer, text)) for text in TEXTS]
    assert lm.loglikelihood_rolling(requests("loglikelihood_rolling", *((text,) for text in TEXTS))) == pytest.approx(
        expected, abs=1e-3
    )
    written = tokenizer.decode([token]) + TEXTS[0]
    assert lm.loglikelihood_rolling(requests("loglikelihood_rolling", (written,))) == pytest.approx(
        expected[:1], abs=1e-3
    )


def test_contexts_begin_with_one_token_and_answers_with_none(family):
    name, tokenizer, model, lm = family
    token, adds = start(name, tokenizer)
    begin = [token] if adds else []
    context, answer = "The function returns", " a list of names"
    whole, given = plain(tokenizer, context + answer), plain(tokenizer, context)
    expected = log_likelihood(model, begin + given, whole[len(given) :])
    alone = log_likelihood(model, [token], plain(tokenizer, answer))
    pairs = [(context, answer), ("", answer)]
    if tokenizer.bos_token:
        pairs.append((tokenizer.bos_token + context, answer))
    scores = [score for score, _ in lm.loglikelihood(requests("loglikelihood", *pairs))]
    written = log_likelihood(model, [token, *given], whole[len(given) :])
    assert scores == pytest.approx([expected, alone, written][: len(pairs)], abs=1e-3)


def test_prompts_begin_with_one_token_whoever_puts_it_there(family, monkeypatch):
    name, tokenizer, _, lm = family
    token, adds = start(name, tokenizer)
    chat = [{"role": "user", "content": "What is an iterator?"}]
    templated = tokenizer.apply_chat_template(chat, chat_template=TEMPLATE, tokenize=False)
    prompts = [templated, TEXTS[0], TEXTS[1]]
    seen = {}
    generate = lm._model_generate

    def note(context, *args, attention_mask, **options):
        for row, mask in zip(context.tolist(), attention_mask.tolist(), strict=True):
            ids = row[mask.index(1) :]
            seen[tokenizer.decode(ids, skip_special_tokens=True)] = ids
        return generate(context, *args, attention_mask=attention_mask, **options)

    monkeypatch.setattr(lm, "_model_generate", note)
    options = {"until": ["."], "max_gen_toks": 2, "do_sample": False}
    lm.generate_until(requests("generate_until", *((prompt, options) for prompt in prompts)))
    assert len(seen) == 3
    for text, ids in seen.items():
        written = text.startswith("<user>") and tokenizer.bos_token is not None
        assert ids == ([token] if adds or written else []) + plain(tokenizer, text)


def test_the_perplexity_of_a_model_whose_tokenizer_begins_texts(root, corpus, texts):
    tokenizer = llama3(texts[1][:20])
    model = tiny_llama(tokenizer, seed=6, context=2048).eval()
    benchmark = held_out_benchmark(root, corpus, "perplexity", 4)
    evaluation = evaluate_model(root, make_model(root, "llama3.fp32", model, tokenizer), benchmark, max_length=64)
    token, nats, size = start("llama3", tokenizer)[0], 0.0, 0
    for row in rows_of(benchmark):
        ids = plain(tokenizer, row["text"])
        size += len(row["text"].encode())
        for first in range(0, len(ids), 64):
            scored = ids[first : first + 64]
            before = [token, *ids][max(0, first + len(scored) - 64) : first + 1]
            nats -= log_likelihood(model, before, scored)
    assert evaluation.json("evaluation.json")["score"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)
    assert evaluation.json("evaluation.json")["cost"]["scored_tokens"] == sum(
        len(plain(tokenizer, row["text"])) for row in rows_of(benchmark)
    )
