"""Prompts in a chat template: what an instruct model of the study is asked instead of plain text.

The harness writes them; here are its options, and the one template that every day and every run reads alike.
"""

from typing import TYPE_CHECKING, Any

from effllm.data.instructions.templates import text_template
from effllm.errors import UserError
from effllm.study.models import ChatPrompts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def prepare_template(tokenizer: "PreTrainedTokenizerBase", model: str) -> None:
    """Let `tokenizer` write the date of one day alone; `UserError`, naming `model`, if it has no chat template."""
    if not tokenizer.chat_template:
        raise UserError(
            f"models.{model}.chat: the tokenizer has no chat template; leave the key out, or add a chat_template to "
            "the model's tokenizer_config.json."
        )
    try:
        tokenizer.chat_template = text_template(tokenizer)
    except ValueError as error:
        raise UserError(f"models.{model}.chat: {error}") from error


def harness_options(chat: ChatPrompts | None) -> dict[str, Any]:
    """The options of lm-eval's `evaluate`, by which its command line has them too; {} for prompts in plain text."""
    if chat is None:
        return {}
    options: dict[str, Any] = {"apply_chat_template": True, "fewshot_as_multiturn": chat.fewshot_as_multiturn}
    return options | ({"system_instruction": chat.system_instruction} if chat.system_instruction else {})
