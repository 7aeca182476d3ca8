"""What is learned in the chat templates of real families, against spans that are written out here by hand."""

import json
from itertools import pairwise

import numpy as np
import pytest
from instruction_tokenizers import (
    CHATML,
    GEMMA,
    LLAMA2,
    LLAMA3,
    MISTRAL,
    MISTRAL_SYSTEM,
    PHI3,
    QWEN3,
    QWQ,
    R1_DISTILL,
    R1_FIRST,
    byte_level,
    metaspace,
    prepending,
    trimmed,
)
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from effllm.data.instructions.encoding import IGNORED, NOT_LEARNED, Encoded, encode
from effllm.data.instructions.samples import Message, Sample
from effllm.data.instructions.settings import Encoding

IM = ("<|im_start|>", "<|im_end|>")
THINK = ("<think>", "</think>")
ROLES3 = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
R1_TOKENS = ("<|User|>", "<|Assistant|>")
EOS = "<|endoftext|>"
REASONED = "<think>\nTwo  and two.\n</think>\n\nIt is  4."
# In marks: what a model writes, to the token that ends its turn. The rest is given to it.
FAMILIES = {
    "Llama 3": (
        lambda: byte_level(ROLES3, LLAMA3, eos="<|end_of_text|>", bos="<|begin_of_text|>"),
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nWhat?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n«A  a.<|eot_id|>»"
        "<|start_header_id|>user<|end_header_id|>\n\nAnd?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n«naïve 日本…<|eot_id|>»",
    ),
    "Qwen 2.5": (
        lambda: trimmed(byte_level(IM, CHATML)),
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat?<|im_end|>\n"
        "<|im_start|>assistant\n«A  a.<|im_end|>»\n<|im_start|>user\nAnd?<|im_end|>\n"
        "<|im_start|>assistant\n«naïve 日本…<|im_end|>»",
    ),
    "Qwen 3": (
        lambda: trimmed(byte_level(IM, QWEN3)),
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat?<|im_end|>\n"
        "<|im_start|>assistant\n«A  a.<|im_end|>»\n<|im_start|>user\nAnd?<|im_end|>\n"
        "<|im_start|>assistant\n«<think>\n\n</think>\n\nnaïve 日本…<|im_end|>»",
    ),
    "Gemma": (
        lambda: metaspace(("<start_of_turn>", "<end_of_turn>"), GEMMA),
        "<s><start_of_turn>user\nWhat?<end_of_turn>\n<start_of_turn>model\n«A  a.<end_of_turn>»\n"
        "<start_of_turn>user\nAnd?<end_of_turn>\n<start_of_turn>model\n«naïve 日本…<end_of_turn>»",
    ),
    "Mistral": (
        lambda: metaspace((), MISTRAL),
        "<s>[INST] What? [/INST]« A  a.</s>»[INST] And? [/INST]« naïve 日本…</s>»",
    ),
    "Mistral with a system message": (
        lambda: metaspace((), MISTRAL_SYSTEM),
        "<s>[INST] What?[/INST]« A  a.</s>»[INST] Be brief.\n\nAnd?[/INST]« naïve 日本…</s>»",
    ),
    "Llama 2": (
        lambda: metaspace((), LLAMA2),
        "<s>[INST] What? [/INST]« A  a. </s>»<s>[INST] And? [/INST]« naïve 日本… </s>»",
    ),
    "Phi 3": (
        lambda: metaspace(("<|end|>", "<|user|>", "<|assistant|>"), PHI3),
        "<|user|>\nWhat?<|end|>\n<|assistant|>\n«A  a.<|end|>»\n"
        "<|user|>\nAnd?<|end|>\n<|assistant|>\n«naïve 日本…<|end|>»",
    ),
    "R1": (
        lambda: byte_level(R1_TOKENS, R1_DISTILL),
        f"{EOS}<|User|>What?<|Assistant|>«A  a.{EOS}»<|User|>And?<|Assistant|>«naïve 日本…{EOS}»",
    ),
}


def conversation(text: str) -> Sample:
    turns = [("user", "What?"), ("assistant", "A  a."), ("user", "And?"), ("assistant", "naïve 日本…")]
    if "Be brief." in text:
        turns.insert(0, ("system", "Be brief."))
    return sample(*turns)


def sample(*turns: tuple[str, str], id: str = "sample") -> Sample:
    return Sample(id, tuple(Message(role, text) for role, text in turns))


def encoded(tokenizer: PreTrainedTokenizerFast, *samples: Sample, length: int = 4096) -> Encoded:
    return encode(samples, tokenizer, Encoding(sequence_length=length, too_long="drop"))


def marked(tokenizer: PreTrainedTokenizerFast, found: Encoded) -> str:
    """The text of a training sequence, its runs of labels in marks."""
    (sequence,) = found.sequences
    (only,) = sequence.samples
    counts = only.labels != IGNORED
    assert (only.labels[counts] == only.input_ids[counts]).all()
    edges = [0, *(np.flatnonzero(np.diff(counts.astype(int))) + 1), len(counts)]
    texts = [tokenizer.decode(only.input_ids[a:b]) for a, b in pairwise(edges)]
    return "".join(f"«{text}»" if counts[a] else text for a, text in zip(edges[:-1], texts, strict=True))


def squeezed(text: str) -> str:
    return "".join(text.split())


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_model_writes_is_learned_and_nothing_else(family: str) -> None:
    make, expected = FAMILIES[family]
    tokenizer = make()
    found = encoded(tokenizer, conversation(expected))
    # Tokenizers that mark spaces decode a run without the space it begins with.
    exact = tokenizer.backend_tokenizer.normalizer is None
    assert (marked(tokenizer, found) if exact else squeezed(marked(tokenizer, found))) == (
        expected if exact else squeezed(expected)
    )
    assert found.counts["not_learned"] == dict.fromkeys(NOT_LEARNED, 0)
    # R1's prompt begins a reasoning that these answers lack; Mistral's holds the system message in the last turn only.
    others = {"R1": 2, "Mistral with a system message": 1}
    assert found.counts["other_prompts"] == others.get(family, 0)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "R1"])
def test_the_last_prompt_is_the_one_that_asks_for_the_answer(family: str) -> None:
    make, expected = FAMILIES[family]
    tokenizer = make()
    talk = conversation(expected)
    (sequence,) = encoded(tokenizer, talk).sequences
    prompt = tokenizer.apply_chat_template(talk.chat()[:-1], add_generation_prompt=True)["input_ids"]
    only = sequence.samples[0]
    assert only.input_ids[: len(prompt)].tolist() == prompt
    assert only.labels[len(prompt) - 1] == IGNORED and (only.labels[len(prompt) :] != IGNORED).all()


def test_earlier_turns_may_end_by_another_token_than_the_last() -> None:
    # As gpt-oss has it.
    marks = ("<|start|>", "<|message|>", "<|end|>", "<|return|>")
    template = (
        "{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}"
        "{% if m.role == 'assistant' and loop.last %}<|return|>{% else %}<|end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
    )
    tokenizer = byte_level(marks, template)
    expected = (
        "<|start|>user<|message|>What?<|end|><|start|>assistant«<|message|>A  a.<|end|>»"
        "<|start|>user<|message|>And?<|end|><|start|>assistant«<|message|>naïve 日本…<|return|>»"
    )
    assert marked(tokenizer, encoded(tokenizer, conversation(expected))) == expected


@pytest.mark.parametrize("end", ["", "<|endoftext|>"])
def test_the_mark_of_the_next_turn_ends_no_answer_and_a_late_end_of_text_does(end: str) -> None:
    template = (
        "{% for m in messages %}{{ '<|User|>' if m.role == 'user' else '<|Assistant|>' }}{{ m.content }}"
        f"{{% if m.role == 'assistant' and not loop.last %}}{end}{{% endif %}}{{% endfor %}}"
        "{% if add_generation_prompt %}<|Assistant|>{% endif %}"
    )
    tokenizer = byte_level(R1_TOKENS, template)
    found = marked(tokenizer, encoded(tokenizer, conversation("")))
    assert found == f"<|User|>What?<|Assistant|>«A  a.{end}»<|User|>And?<|Assistant|>«naïve 日本…{EOS}»"


@pytest.mark.parametrize("trims", [False, True])
def test_tokens_of_space_are_learned_whatever_the_offsets_leave_out(trims: bool) -> None:
    plain = byte_level(IM, CHATML)
    tokenizer = trimmed(byte_level(IM, CHATML)) if trims else plain
    answer = "def  f(x):\n\n        return   x\n\t\n  # end"
    found = encoded(tokenizer, sample(("user", "Code?"), ("assistant", answer)))
    ids = [*plain.encode(answer, add_special_tokens=False), plain.convert_tokens_to_ids("<|im_end|>")]
    labels = found.sequences[0].samples[0].labels
    assert labels[labels != IGNORED].tolist() == ids
    assert found.counts["answer_tokens"] == len(ids)


@pytest.mark.parametrize("scheme", ["always", "first", "never"])
@pytest.mark.parametrize("legacy", [False, True])
def test_marked_spaces_and_normalizers_lose_no_token(scheme: str, legacy: bool) -> None:
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}" + (
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    tokenizer = prepending(("<user>", "<assistant>"), template, scheme, legacy)
    # NFKC makes two letters of the ligature and one of e and its accent; three dots come of one.
    answer = "ﬁne… cafe\u0301  ½ 日本"
    found = encoded(tokenizer, sample(("user", "a  b"), ("assistant", answer)))
    only = found.sequences[0].samples[0]
    whole = tokenizer.encode(f"<user>a  b</s><assistant>{answer}</s>", add_special_tokens=False)
    assert only.input_ids.tolist() == whole
    begins = whole.index(tokenizer.convert_tokens_to_ids("<assistant>")) + 1
    assert (only.labels[:begins] == IGNORED).all() and only.labels[begins:].tolist() == whole[begins:]


def test_added_tokens_that_take_space_with_them_leave_the_answer_its_own() -> None:
    tokenizer = byte_level((), PHI3.replace("{{ message['content'] }}<|end|>", "{{ message['content'] }} <|end|>"))
    marks = [AddedToken("<|assistant|>", rstrip=True, special=True), AddedToken("<|user|>", rstrip=True, special=True)]
    tokenizer.add_tokens([*marks, AddedToken("<|end|>", lstrip=True, rstrip=True, special=True)], special_tokens=True)
    found = encoded(tokenizer, sample(("user", "Why?"), ("assistant", "So  so.")))
    labels = found.sequences[0].samples[0].labels
    expected = [*tokenizer.encode("So  so."), tokenizer.convert_tokens_to_ids("<|end|>")]
    assert labels[labels != IGNORED].tolist() == expected
    assert sum(found.counts["not_learned"].values()) == 0


# Reasoning.

REASONING = {
    "Qwen 3": (lambda: byte_level((*IM,), QWEN3), "<|im_start|>assistant\n«{answer}<|im_end|>»"),
    "QwQ": (lambda: byte_level(IM, QWQ), "<|im_start|>assistant\n<think>\n«{begun}<|im_end|>»"),
    "R1": (lambda: byte_level(R1_TOKENS, R1_DISTILL), "<|Assistant|><think>\n«{begun}" + EOS + "»"),
    "the first R1": (lambda: byte_level(R1_TOKENS, R1_FIRST), "<|Assistant|>«{answer}" + EOS + "»"),
    "ChatML": (lambda: trimmed(byte_level(IM, CHATML)), "<|im_start|>assistant\n«{answer}<|im_end|>»"),
    "Llama 3": (
        lambda: byte_level(ROLES3, LLAMA3, eos="<|end_of_text|>"),
        "<|start_header_id|>assistant<|end_header_id|>\n\n«{answer}<|eot_id|>»",
    ),
}


def expected_end(family: str) -> str:
    return REASONING[family][1].format(answer=REASONED, begun=REASONED.removeprefix("<think>\n"))


@pytest.mark.parametrize("marks_are", ["text", "added", "special"])
@pytest.mark.parametrize("family", REASONING)
def test_the_reasoning_of_the_last_answer_is_learned(family: str, marks_are: str) -> None:
    tokenizer = REASONING[family][0]()
    if marks_are != "text":
        tokenizer.add_tokens([AddedToken(mark, special=marks_are == "special", normalized=False) for mark in THINK])
    found = encoded(tokenizer, sample(("user", "How much?"), ("assistant", REASONED)))
    assert marked(tokenizer, found).endswith(expected_end(family))
    assert found.counts["samples"] == 1
    assert found.counts["not_learned"] == dict.fromkeys(NOT_LEARNED, 0) and found.counts["other_prompts"] == 0


@pytest.mark.parametrize("family", REASONING)
def test_an_answer_that_is_all_reasoning_is_learned(family: str) -> None:
    tokenizer = REASONING[family][0]()
    answer = "<think>\nTwo  and two.\n</think>"
    found = encoded(tokenizer, sample(("user", "How much?"), ("assistant", answer)))
    expected = REASONING[family][1].format(answer=answer, begun=answer.removeprefix("<think>\n"))
    assert squeezed(marked(tokenizer, found)).endswith(squeezed(expected))
    assert found.counts["not_learned"] == dict.fromkeys(NOT_LEARNED, 0) and found.counts["other_prompts"] == 0


def test_an_earlier_answer_that_is_not_shown_at_all_is_counted_and_costs_no_sample() -> None:
    tokenizer = REASONING["R1"][0]()
    silent = "<think>\nTwo.\n</think>"
    turns = [("user", "How much?"), ("assistant", silent), ("user", "Sure?"), ("assistant", REASONED)]
    found = encoded(tokenizer, sample(*turns))
    text = marked(tokenizer, found)
    assert text.count("«") == 1 and text.endswith(expected_end("R1"))
    hidden = len(tokenizer.encode(silent, add_special_tokens=False))
    assert found.counts["not_learned"] == dict.fromkeys(NOT_LEARNED, 0) | {"hidden_by_template": hidden}


@pytest.mark.parametrize("family", ["Qwen 3", "QwQ", "R1", "the first R1"])
def test_reasoning_that_a_template_leaves_out_of_earlier_turns_is_counted(family: str) -> None:
    tokenizer = REASONING[family][0]()
    turns = [("user", "How much?"), ("assistant", REASONED), ("user", "Sure?"), ("assistant", REASONED)]
    found = encoded(tokenizer, sample(*turns))
    text = marked(tokenizer, found)
    first, _, rest = text.partition("Sure?")
    assert first.count("Two") == 0 and "«It is  4." in first.replace("«\n\n", "«")
    assert rest.endswith(expected_end(family))
    hidden = len(tokenizer.encode("<think>Twoandtwo.</think>", add_special_tokens=False))
    assert found.counts["not_learned"] == dict.fromkeys(NOT_LEARNED, 0) | {"hidden_by_template": hidden}


def test_what_is_not_learned_is_counted_in_tokens_by_reason() -> None:
    tokenizer = byte_level(IM, CHATML)
    count = lambda text: len(tokenizer.encode(text, add_special_tokens=False))  # noqa: E731
    kept = sample(("user", "a"), ("assistant", "b" * 20), id="kept")
    special = sample(("user", "a"), ("assistant", "c <|im_end|> d"), id="special")
    long = sample(("user", "a" * 300), ("assistant", "e" * 7), id="long")
    whole = encoded(tokenizer, kept).counts
    found = encoded(tokenizer, kept, special, long, length=whole["tokens"] - 5).counts
    assert found["dropped"] == {"too_long": 1, "special_token": 1, "refused_by_template": 0}
    assert found["not_learned"] == dict.fromkeys(NOT_LEARNED, 0) | {
        "truncated": 5,
        "special_token": count("c <|im_end|> d"),
        "too_long": count("e" * 7) + 1,
    }
    assert found["answer_tokens"] == whole["answer_tokens"] - 5
    refused = sample(("system", "s"), ("user", "a"), ("assistant", "b b"), id="refused")
    gemma = metaspace(("<start_of_turn>", "<end_of_turn>"), GEMMA)
    found = encoded(gemma, kept, refused).counts
    assert found["dropped"]["refused_by_template"] == 1
    assert found["not_learned"]["refused_by_template"] == len(gemma.encode("b b", add_special_tokens=False))


def test_a_token_of_prompt_and_answer_is_not_learned_and_counted() -> None:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}{% endif %}"
    tokenizer = byte_level((), template)
    whole = tokenizer.tokenize("What does the function do")
    token = next(token for token in whole if len(token) > 3 and token.isalpha())
    found = encoded(tokenizer, sample(("user", "What " + token[:2]), ("assistant", token[2:] + " do")))
    assert found.counts["not_learned"]["joined_to_prompt"] == 1


def test_counts_are_plain_numbers() -> None:
    found = encoded(byte_level(IM, CHATML), conversation(""))
    assert json.loads(json.dumps(found.counts)) == found.counts
