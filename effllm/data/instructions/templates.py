"""Chat templates: which one a tokenizer gets, and where in the rendered text the answers are."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from jinja2.exceptions import TemplateError

from effllm.data.instructions.samples import Sample
from effllm.errors import UserError
from effllm.study.instructions import Encoding

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
# Templates that write the date of today (Llama 3.2) would encode one sample differently every day, so for them it is
# always the date that Llama's own template falls back to.
_FIXED_DATE = (
    "{% macro strftime_now(format) %}"
    "{{ format | replace('%Y', '2024') | replace('%m', '07') | replace('%d', '26')"
    " | replace('%B', 'July') | replace('%b', 'Jul') | replace('%A', 'Friday') | replace('%a', 'Fri')"
    " | replace('%H', '00') | replace('%M', '00') | replace('%S', '00') }}"
    "{% endmacro %}"
)
CHATML_MARKERS = ("<|im_start|>", "<|im_end|>")
_PLACEHOLDER = "(effllm: the answer goes here)"


class RefusedByTemplateError(Exception):
    """The template cannot render this sample (a role it does not know, an order it does not allow)."""


@dataclass(frozen=True)
class Rendered:
    """A conversation as text, and the character ranges [start, end) of its answers."""

    text: str
    answers: list[tuple[int, int]]


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


def render(tokenizer: "PreTrainedTokenizerBase", sample: Sample) -> Rendered:
    """`sample` in the chat template of `tokenizer`, with the place of every answer, the same on any day.

    The place of an answer is found by putting a placeholder in its stead: what stands before and after it is the
    template's, except for space before it that the template does not give a model to begin with. A template that
    rewrites an answer (leaves out earlier reasoning, say) is followed: the range covers what it shows.
    `RefusedByTemplateError` if the template raises an error.
    """
    chat = sample.chat()
    text = _apply(tokenizer, chat)
    answers = []
    for turn, message in enumerate(chat):
        if message["role"] != "assistant":
            continue
        marked = _apply(tokenizer, [*chat[:turn], {**message, "content": _PLACEHOLDER}, *chat[turn + 1 :]])
        before, found, after = marked.partition(_PLACEHOLDER)
        end = len(text) - len(after)
        if not found or end < len(before) or not (text.startswith(before) and text.endswith(after)):
            raise RefusedByTemplateError("the place of an answer cannot be found in the rendered text")
        answers.append((_start(tokenizer, text, chat[:turn], len(before)), end))
    return Rendered(text, answers)


def _start(tokenizer: "PreTrainedTokenizerBase", text: str, prompt: list[dict[str, str]], start: int) -> int:
    """Where a model that is given `prompt` begins to write: at `start`, or at the space before it (Mistral)."""
    given = _apply(tokenizer, prompt, add_generation_prompt=True)
    return len(given) if text.startswith(given) and text[len(given) : start].isspace() else start


def _apply(tokenizer: "PreTrainedTokenizerBase", chat: list[dict[str, str]], **options: bool) -> str:
    template = tokenizer.get_chat_template()
    if "strftime_now" in template:
        template = _FIXED_DATE + template
    try:
        return tokenizer.apply_chat_template(chat, chat_template=template, tokenize=False, **options)
    except TemplateError as error:
        raise RefusedByTemplateError(str(error)) from None


def _begins_with(tokenizer: "PreTrainedTokenizerBase") -> str:
    """The begin-of-text token where the tokenizer itself puts one before a text; samples are encoded without it."""
    ids = tokenizer("a")["input_ids"]
    return "{{ bos_token }}" if tokenizer.bos_token is not None and ids[0] == tokenizer.bos_token_id else ""
