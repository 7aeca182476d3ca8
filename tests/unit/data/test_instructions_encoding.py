"""The loss covers the answers alone, in every template, and what is cut, dropped or refused is said."""

from dataclasses import dataclass

import numpy as np
import pytest
from instruction_tokenizers import CHATML, LLAMA3, MISTRAL, PHI3, R1_DISTILL, byte_level, metaspace
from transformers import PreTrainedTokenizerFast

from effllm.data.instructions.encoding import IGNORED, EncodedSample, encode, pack
from effllm.data.instructions.samples import Message, Sample
from effllm.data.instructions.settings import Encoding
from effllm.data.instructions.templates import set_template
from effllm.errors import UserError


@dataclass(frozen=True)
class Case:
    """A tokenizer, the template it is asked to use, and the token that ends an answer."""

    tokenizer: PreTrainedTokenizerFast
    template: str
    end: str


def _cases() -> dict[str, Case]:
    chatml_tokens = ("<|im_start|>", "<|im_end|>")
    return {
        "plain": Case(byte_level(), "plain", "<|endoftext|>"),
        "plain, spaces as marks": Case(metaspace(), "plain", "</s>"),
        "chatml": Case(byte_level(chatml_tokens), "chatml", "<|im_end|>"),
        "Qwen's own": Case(byte_level(chatml_tokens, CHATML), "tokenizer", "<|im_end|>"),
        "Llama 3's own": Case(
            byte_level(
                ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
                LLAMA3,
                eos="<|end_of_text|>",
                bos="<|begin_of_text|>",
            ),
            "tokenizer",
            "<|eot_id|>",
        ),
        "Mistral's own": Case(metaspace((), MISTRAL), "tokenizer", "</s>"),
        "R1's own": Case(byte_level(("<|User|>", "<|Assistant|>"), R1_DISTILL), "tokenizer", "<|endoftext|>"),
        "Phi 3's own": Case(metaspace(("<|end|>", "<|user|>", "<|assistant|>"), PHI3), "tokenizer", "<|end|>"),
    }


@pytest.fixture(scope="module", params=list(_cases()))
def case(request: pytest.FixtureRequest) -> Case:
    """Each tokenizer with its template set."""
    found = _cases()[request.param]
    set_template(found.tokenizer, Encoding(template=found.template, sequence_length=8), "a model")
    return found


def sample(*turns: tuple[str, str], id: str = "sample") -> Sample:
    return Sample(id, tuple(Message(role, text) for role, text in turns))


SINGLE = sample(("user", "What does the function do?"), ("assistant", "It returns naïve 日本 — x + 1."))
# Answers that the template's own text also spells, and one that ends in what could join the next token.
MULTI = sample(
    ("user", "What?"),
    ("assistant", "assistant"),
    ("user", "Explain: a"),
    ("assistant", "a"),
    ("user", "a"),
    ("assistant", "a:"),
)


def one(tokenizer: PreTrainedTokenizerFast, sample: Sample, length: int = 512, **options: object) -> EncodedSample:
    (sequence,) = encode([sample], tokenizer, Encoding(sequence_length=length, **options)).sequences
    return sequence.samples[0]


def answers(tokenizer: PreTrainedTokenizerFast, encoded: EncodedSample) -> list[str]:
    """The texts of the runs of labelled tokens, end tokens written out."""
    counts = encoded.labels != IGNORED
    assert (encoded.labels[counts] == encoded.input_ids[counts]).all()
    edges = np.flatnonzero(np.diff(np.concatenate([[False], counts, [False]]).astype(int)))
    return [tokenizer.decode(encoded.input_ids[a:b]) for a, b in edges.reshape(-1, 2)]


def test_the_loss_covers_the_answer_and_the_token_that_ends_it(case: Case) -> None:
    (answer,) = answers(case.tokenizer, one(case.tokenizer, SINGLE))
    assert answer == SINGLE.messages[1].content + case.end


def test_every_answer_of_a_conversation_counts_and_nothing_else(case: Case) -> None:
    found = answers(case.tokenizer, one(case.tokenizer, MULTI))
    assert found == [m.content + case.end for m in MULTI.messages if m.role == "assistant"]


def test_cutting_takes_from_the_end_of_the_answer_and_its_end_token_first(case: Case) -> None:
    whole = one(case.tokenizer, SINGLE)
    first = int(np.flatnonzero(whole.labels != IGNORED)[0])
    for length in range(first + 1, len(whole)):
        cut = one(case.tokenizer, SINGLE, length)
        assert (cut.input_ids == whole.input_ids[:length]).all() and (cut.labels == whole.labels[:length]).all()
        (answer,) = answers(case.tokenizer, cut)
        assert case.end not in answer
    # The byte-level tokenizers may cut inside a character.
    start, _, _ = answers(case.tokenizer, one(case.tokenizer, SINGLE, len(whole) - 2))[0].partition("�")
    assert SINGLE.messages[1].content.startswith(start.rstrip())


def test_the_prompt_is_what_the_template_makes_of_it_for_generation(case: Case) -> None:
    encoded = one(case.tokenizer, SINGLE)
    prompt = case.tokenizer.apply_chat_template(SINGLE.chat()[:1], add_generation_prompt=True)["input_ids"]
    if case.tokenizer.chat_template == R1_DISTILL:
        # It begins the reasoning for the model, which published answers do not write that way.
        prompt = prompt[: -len(case.tokenizer.encode("<think>\n", add_special_tokens=False))]
    assert encoded.input_ids[: len(prompt)].tolist() == prompt
    assert (encoded.labels[: len(prompt)] == IGNORED).all() and (encoded.labels[len(prompt) :] != IGNORED).all()


def test_labels_agree_with_the_assistant_mask_of_transformers() -> None:
    marked = CHATML.replace("{{ message['content'] }}<|im_end|>", "{{ message['content'] }}<|im_end|>").replace(
        "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n",
        "<|im_start|>{{ message['role'] }}\n"
        "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}<|im_end|>{% endgeneration %}"
        "{% else %}{{ message['content'] }}<|im_end|>{% endif %}{{ '\n' }}",
    )
    tokenizer = byte_level(("<|im_start|>", "<|im_end|>"), CHATML)
    reference = byte_level(("<|im_start|>", "<|im_end|>"), marked).apply_chat_template(
        MULTI.chat(), return_dict=True, return_assistant_tokens_mask=True
    )
    encoded = one(tokenizer, MULTI)
    # The line break after the last turn is left off.
    assert encoded.input_ids.tolist() == reference["input_ids"][:-1]
    assert (encoded.labels != IGNORED).astype(int).tolist() == reference["assistant_masks"][:-1]


def test_a_template_that_writes_no_end_gets_the_end_of_text_token() -> None:
    template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    encoded = one(byte_level((), template), SINGLE)
    assert answers(byte_level((), template), encoded) == [SINGLE.messages[1].content + "<|endoftext|>"]


def test_a_prompt_that_fills_the_sequence_is_an_error_that_names_the_sample_or_is_dropped_and_counted(
    case: Case,
) -> None:
    long = sample(("user", "Explain: " + "fox " * 120), ("assistant", "Yes."), id="0123456789abcdef")
    short = sample(("user", "a"), ("assistant", "b"))
    with pytest.raises(UserError, match=r"sample 0123456789abcdef \('Explain: fox .*fills sequence_length 100; raise"):
        encode([short, long], case.tokenizer, Encoding(sequence_length=100))
    encoded = encode([short, long], case.tokenizer, Encoding(sequence_length=100, too_long="drop"))
    assert [sequence.ids for sequence in encoded.sequences] == [["sample"]]
    assert encoded.counts["dropped"] == {"too_long": 1, "special_token": 0, "refused_by_template": 0}
    with pytest.raises(UserError, match=r"nothing of samples is left to train on \(too_long 1, "):
        encode([long], case.tokenizer, Encoding(sequence_length=100, too_long="drop"))


def test_a_text_that_spells_a_special_token_out_is_dropped_and_counted(case: Case) -> None:
    tricky = sample(("user", f"What is {case.end}?"), ("assistant", "A token."))
    encoded = encode([SINGLE, tricky], case.tokenizer, Encoding(sequence_length=512))
    assert encoded.counts["dropped"] == {"too_long": 0, "special_token": 1, "refused_by_template": 0}


def test_roles_that_a_template_refuses_are_dropped_and_counted() -> None:
    tokenizer = metaspace((), MISTRAL)
    with_system = sample(("system", "Be brief."), *((m.role, m.content) for m in SINGLE.messages))
    encoded = encode([SINGLE, with_system], tokenizer, Encoding(sequence_length=512))
    assert encoded.counts["dropped"] == {"too_long": 0, "special_token": 0, "refused_by_template": 1}


def test_counts_say_what_training_sees(case: Case) -> None:
    whole = [one(case.tokenizer, each) for each in (SINGLE, MULTI)]
    length = max(map(len, whole)) - 1
    encoded = encode([SINGLE, MULTI], case.tokenizer, Encoding(sequence_length=length))
    assert encoded.counts["samples"] == encoded.counts["sequences"] == 2
    assert encoded.counts["tokens"] == sum(min(len(each), length) for each in whole)
    assert encoded.counts["truncated"] == sum(len(each) > length for each in whole)
    labels = np.concatenate([sequence.samples[0].labels for sequence in encoded.sequences])
    assert encoded.counts["answer_tokens"] == (labels != IGNORED).sum() > 0


def test_a_template_that_writes_the_date_encodes_the_same_on_any_day() -> None:
    # As Llama 3.2's does.
    dated = (
        "{%- if not date_string is defined %}{%- if strftime_now is defined %}"
        '{%- set date_string = strftime_now("%d %b %Y") %}{%- else %}{%- set date_string = "none" %}{%- endif %}'
        "{%- endif %}{{ 'Today Date: ' + date_string + '\n\n' }}"
    )
    tokenizer = byte_level(("<|im_start|>", "<|im_end|>"), dated + CHATML)
    encoded = one(tokenizer, SINGLE)
    assert tokenizer.decode(encoded.input_ids).startswith("Today Date: 26 Jul 2024\n\n<|im_start|>system\n")
    assert answers(tokenizer, encoded) == [SINGLE.messages[1].content + "<|im_end|>"]


# Which template.


def test_a_tokenizer_without_a_template_needs_a_choice_and_carries_it_afterwards() -> None:
    tokenizer = byte_level()
    with pytest.raises(
        UserError, match=r"llama: its tokenizer has no chat template; set encoding.template_without_own"
    ):
        set_template(tokenizer, Encoding(sequence_length=8), "llama")
    assert set_template(tokenizer, Encoding(sequence_length=8, template_without_own="plain"), "llama") == "plain"
    text = tokenizer.apply_chat_template(MULTI.chat()[:3], tokenize=False, add_generation_prompt=True)
    assert text == (
        "### Instruction:\nWhat?\n\n### Response:\nassistant<|endoftext|>\n\n"
        "### Instruction:\nExplain: a\n\n### Response:\n"
    )


def test_a_tokenizer_with_a_template_keeps_it_unless_the_study_names_another() -> None:
    tokenizer = byte_level(("<|im_start|>", "<|im_end|>"), CHATML)
    encoding = Encoding(sequence_length=8, template_without_own="plain")
    assert set_template(tokenizer, encoding, "qwen") == "tokenizer"
    assert tokenizer.chat_template == CHATML
    assert set_template(tokenizer, Encoding(sequence_length=8, template="plain"), "qwen") == "plain"
    assert tokenizer.chat_template != CHATML


def test_chatml_needs_its_markers() -> None:
    with pytest.raises(UserError, match=r"llama: its tokenizer has no token <\|im_start\|> and <\|im_end\|>"):
        set_template(byte_level(), Encoding(sequence_length=8, template="chatml"), "llama")


def test_the_begin_of_text_token_stands_where_the_tokenizer_puts_one() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = metaspace()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    set_template(tokenizer, Encoding(sequence_length=8, template="plain"), "mistral")
    encoded = one(tokenizer, SINGLE)
    assert encoded.input_ids[0] == tokenizer.bos_token_id
    assert (encoded.input_ids == tokenizer.bos_token_id).sum() == 1


# Packing into sequences.


def numbered(lengths: list[int]) -> list[EncodedSample]:
    return [EncodedSample(str(i), np.zeros(n, np.int32), np.zeros(n, np.int32)) for i, n in enumerate(lengths)]


def test_packing_keeps_every_sample_whole_and_once_within_the_length() -> None:
    lengths = np.random.default_rng(0).integers(1, 101, 500).tolist()
    sequences = pack(numbered(lengths), 100)
    assert sorted(int(id) for sequence in sequences for id in sequence.ids) == list(range(500))
    assert all(len(sequence) <= 100 for sequence in sequences)
    assert all(sequence.samples for sequence in sequences)
    # Best fit, longest first, needs at most 11/9 of the optimum and one more (Johnson et al., 1974).
    assert len(sequences) <= 11 / 9 * -(-sum(lengths) // 100) + 1
    firsts = [int(sequence.ids[0]) for sequence in sequences]
    assert firsts == sorted(firsts)


def test_packing_fills_the_tightest_room() -> None:
    assert [sequence.ids for sequence in pack(numbered([6, 3, 4, 7]), 10)] == [["0", "2"], ["1", "3"]]
