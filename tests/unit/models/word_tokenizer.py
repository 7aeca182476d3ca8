"""A tokenizer whose tokens are words."""

from collections.abc import Iterable

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast


def word_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerFast:
    """Ids 0, 1 and 2 are `<pad>`, `<eos>` and `<unk>`, those of the words follow in their order."""
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    tokenizer = Tokenizer(WordLevel({word: id for id, word in enumerate([*special.values(), *words])}, "<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
