"""Chat templates: which one a tokenizer gets, and where in the rendered text the answers are."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jinja2.exceptions import TemplateError

from effllm.data.instructions.samples import Sample
from effllm.data.instructions.settings import Encoding
from effllm.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# https://github.com/openai/openai-python/blob/v0.28.1/chatml.md, as Qwen and others use it.
CHATML = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# The headings of Stanford Alpaca without its preamble; the end-of-text token ends an answer.
PLAIN = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] }}\n\n"
    "{% elif message['role'] == 'user' %}### Instruction:\n{{ message['content'] }}\n\n"
    "{% else %}### Response:\n{{ message['content'] }}{{ eos_token }}"
    "{% if not loop.last %}{{ '\n\n' }}{% endif %}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}### Response:\n{% endif %}"
)
# The date that Llama's own template falls back to.
_FIXED_DATE = (
    "{% macro strftime_now(format) %}"
    "{{ format | replace('%Y', '2024') | replace('%m', '07') | replace('%d', '26')"
    " | replace('%B', 'July') | replace('%b', 'Jul') | replace('%A', 'Friday') | replace('%a', 'Fri')"
    " | replace('%H', '00') | replace('%M', '00') | replace('%S', '00') }}"
    "{% endmacro %}"
)
# For templates that want a turn's content as a list of parts.
_AS_PARTS = (
    "{% set said = namespace(turns=[]) %}"
    "{% for message in messages %}{% set said.turns = said.turns + ["
    "{'role': message['role'], 'content': [{'type': 'text', 'text': message['content']}]}] %}{% endfor %}"
    "{% set messages = said.turns %}"
)
CHATML_MARKERS = ("<|im_start|>", "<|im_end|>")
_PLACEHOLDER = "(effllm: the answer goes here)"


class RefusedByTemplateError(Exception):
    """The template cannot render this sample (a role it does not know, an order it does not allow)."""


@dataclass(frozen=True)
class Rendered:
    """A conversation as text, and the character ranges [start, end) of what a model has to write in it.

    `is_ended` says whether a token of the template ends the last range. `hidden` are the parts of answers that the
    text does not show; `other_prompts` counts the answers that come after another text than the prompt that asks for
    them, as where that prompt begins a reasoning and the answer has none.
    """

    text: str
    answers: list[tuple[int, int]]
    is_ended: bool
    hidden: list[str]
    other_prompts: int


def set_template(tokenizer: "PreTrainedTokenizerBase", encoding: Encoding, model: str) -> str:
    """Give `tokenizer` the chat template that `encoding` asks for, and return its name (tokenizer, chatml, plain).

    The tokenizer that is saved with the fine-tuned model then carries it. `UserError`, naming `model`, if the
    tokenizer has no template of its own or lacks what the template writes.
    """
    name = encoding.template
    if name == "tokenizer" and not tokenizer.chat_template:
        if encoding.template_without_own is None:
            raise UserError(
                f"{model}: its tokenizer has no chat template; set encoding.template_without_own to plain or chatml, "
                "or encoding.template for all models."
            )
        name = encoding.template_without_own
    if name == "tokenizer":
        return name
    if tokenizer.eos_token is None:
        raise UserError(
            f"{model}: its tokenizer has no end-of-text token to end an answer with; use another tokenizer."
        )
    if name == "chatml":
        missing = [marker for marker in CHATML_MARKERS if marker not in tokenizer.get_vocab()]
        if missing:
            raise UserError(
                f"{model}: its tokenizer has no token {' and '.join(missing)}, which template chatml writes; "
                "use template plain."
            )
    begins = _begins_with(tokenizer)
    tokenizer.chat_template = begins + (CHATML if name == "chatml" else PLAIN)
    return name


def text_template(tokenizer: "PreTrainedTokenizerBase") -> str:
    """The tokenizer's chat template for turns of text, the same on any day.

    Those that write the date of today (Llama 3.2) would make one conversation another text every day, so for them it is
    always the same date. Those that show nothing but lists of parts (LLaVA's) are given the text as one part.
    """
    template: str = tokenizer.get_chat_template()
    if "strftime_now" in template:
        template = _FIXED_DATE + template
    asked = [{"role": "user", "content": _PLACEHOLDER}]
    shown = []
    for tried in (template, _AS_PARTS + template):
        try:
            text = tokenizer.apply_chat_template(asked, chat_template=tried, tokenize=False)
        except (TemplateError, TypeError):
            # Such as of a dialogue without an answer: what is asked of it later will tell.
            text = ""
        shown.append(_PLACEHOLDER in text)
    return _AS_PARTS + template if shown == [False, True] else template


class Renderer:
    """Writes conversations in the chat template of a tokenizer, the same on any day, and finds the answers in them.

    An answer begins where the prompt that asks for it ends (the turns before it with `add_generation_prompt`) and ends
    with the first added token that the template writes after it: it is all that a model would write there, such as
    the empty reasoning of Qwen 3's template. Where that prompt is not what precedes it, it begins with its content.

    Templates leave the reasoning out of earlier turns, and some out of the last one too (DeepSeek-R1's), since they
    are made for prompts. So the last answer is taken as it is, after its prompt, where the template would not show
    all of it; what earlier ones lose is in `Rendered.hidden`.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase"):
        self._tokenizer = tokenizer
        self._template = text_template(tokenizer)
        contents = (token.content for token in tokenizer.added_tokens_decoder.values())
        # The longest first: "<|im_end|>" may be added beside "<|im_end|>\n".
        marks = sorted((mark for mark in contents if mark.strip()), key=len, reverse=True)
        self._marks = frozenset(marks)
        self._ending = re.compile(f".*?(?:{'|'.join(map(re.escape, marks))})" if marks else "(?!)", re.DOTALL)

    def render(self, sample: Sample) -> Rendered:
        """`sample` as text; `RefusedByTemplateError` if the template raises an error or shows no answer."""
        chat = sample.chat()
        text = self._apply(chat)
        answers: list[tuple[int, int]] = []
        hidden, other_prompts, is_ended = [], 0, False
        for turn in (turn for turn, message in enumerate(chat) if message["role"] == "assistant"):
            content = chat[turn]["content"]
            form = self._form(chat[:turn])
            place = self._place(text, chat, turn, form)
            missing = content
            if place:
                start, end, has_its_prompt = place
                missing = _missing(content, (form.begun if has_its_prompt else "") + text[start:end])
            whole = form.prompt + form.completion(content) + form.ending
            kept = answers[-1][1] if answers else 0
            if missing and turn == len(chat) - 1 and whole[:kept] == text[:kept]:
                text, start, end, has_its_prompt = whole, len(form.prompt), len(whole), True
                is_ended = bool(form.ending)
            elif place:
                hidden += [missing] if missing else []
                ending = self._ending_at(text, end, form)
                end, is_ended = end + len(ending), bool(ending)
            else:
                hidden.append(content)
                continue
            other_prompts += not has_its_prompt
            answers.append((start, end))
        if not answers:
            raise RefusedByTemplateError("no answer is found in the rendered text")
        return Rendered(text, answers, is_ended, hidden, other_prompts)

    def _form(self, before: list[dict[str, str]]) -> "_Form":
        """What the template writes around an answer that comes after `before` and is the last turn."""
        prompt = self._apply(before, add_generation_prompt=True)
        alone = self._apply([*before, {"role": "assistant", "content": _PLACEHOLDER}])
        head, found, tail = alone.partition(_PLACEHOLDER)
        if not found:
            raise RefusedByTemplateError("the template does not show answers as they are")
        shared = _shared(head, prompt)
        ending = self._ending.match(tail)
        return _Form(
            prompt=prompt,
            opening=head[shared:] if shared == len(prompt) else "",
            begun=prompt[shared:],
            ending=ending[0] if ending else "",
        )

    def _place(self, text: str, chat: list[dict[str, str]], turn: int, form: "_Form") -> tuple[int, int, bool] | None:
        """Where an answer begins and its content ends in `text`, and whether the prompt that asks for it precedes it.

        The place of the content is found by a placeholder in its stead. Only what precedes may then differ, where the
        template writes a part of the content itself (Qwen 3's reasoning), and only after the prompt. None where it
        cannot be found, or where nothing of the answer is shown.
        """
        marked = self._apply([*chat[:turn], chat[turn] | {"content": _PLACEHOLDER}, *chat[turn + 1 :]])
        before, found, after = marked.partition(_PLACEHOLDER)
        end = len(text) - len(after)
        if not found or not text.endswith(after):
            return None
        has_its_prompt = text.startswith(form.prompt) and len(form.prompt) < end
        if has_its_prompt:
            start = len(form.prompt)
        elif text.startswith(before):
            start = len(before) - (len(form.opening) if before.endswith(form.opening) else 0)
        else:
            return None
        return (start, end, has_its_prompt) if start < end else None

    def _ending_at(self, text: str, end: int, form: "_Form") -> str:
        """What ends the turn whose content ends at `end`: as after a last turn, or another end that comes at once."""
        if form.ending and text.startswith(form.ending, end):
            return form.ending
        # gpt-oss ends earlier turns by another token. Without any of its own a turn is followed by the next one's mark.
        found = self._ending.match(text, end)
        mark = found[0].lstrip() if found else ""
        is_mark = mark in self._marks and (form.ending or mark == self._tokenizer.eos_token)
        return found[0] if found and is_mark else ""

    def _apply(self, chat: list[dict[str, str]], add_generation_prompt: bool = False) -> str:
        try:
            text = self._tokenizer.apply_chat_template(
                chat,
                chat_template=self._template,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
            )
        except TemplateError as error:
            raise RefusedByTemplateError(str(error)) from None
        assert isinstance(text, str)
        return text


@dataclass(frozen=True)
class _Form:
    """What a template writes around the last answer.

    `opening` comes between the prompt that asks for it and its content, `begun` is what that prompt has beyond the text
    before an answer (R1's "<think>"), and `ending` comes after the content, up to the token that ends the turn.
    """

    prompt: str
    opening: str
    begun: str
    ending: str

    def completion(self, content: str) -> str:
        """What a model writes after the prompt to give this content."""
        mark = self.begun.strip()
        if mark and content.startswith(mark):
            return content[len(mark) :].lstrip()
        return self.opening + content if self.opening.isspace() else content


def _missing(content: str, shown: str) -> str:
    """The part of `content` that `shown` does not have, whatever the space in either."""
    wanted, found = _without_space(content), _without_space(shown)
    if wanted in found:
        return ""
    first = _shared(wanted, found)
    last = _shared(wanted[first:][::-1], found[::-1])
    return wanted[first : len(wanted) - last]


def _shared(one: str, other: str) -> int:
    """How many characters two texts begin with in common."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(one), len(other)))


def _without_space(text: str) -> str:
    return "".join(text.split())


def _begins_with(tokenizer: "PreTrainedTokenizerBase") -> str:
    """The begin-of-text token where the tokenizer itself puts one before a text; samples are encoded without it."""
    ids = tokenizer("a")["input_ids"]
    return "{{ bos_token }}" if tokenizer.bos_token is not None and ids[0] == tokenizer.bos_token_id else ""
