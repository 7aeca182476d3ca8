"""Contexts and answers as tokens, many at a time.

lm-eval encodes the context and the whole text of every request by itself: with ten choices an item, the item's prompt
twenty times, which on a GPU takes longer than the model does. Here an item's prompt is encoded once and once with each
choice, in calls that the tokenizer spreads over its threads. The tokens are the same.
"""

from collections.abc import Callable, Iterator, Sequence

_AT_A_TIME = 1024


def encoded_pairs(
    pairs: Sequence[tuple[str, str]], encode: Callable[..., list[list[int]]], prefix_token: int
) -> Iterator[tuple[list[int], list[int]]]:
    """Yield context and continuation of each pair as tokens, as `lm_eval.api.model.TemplateLM` makes them.

    encode: texts to tokens, with or without (False) what begins a text. Without a context, `prefix_token` is one.
    """
    for start in range(0, len(pairs), _AT_A_TIME):
        taken = [(bool(context), *_parted(context, answer)) for context, answer in pairs[start : start + _AT_A_TIME]]
        texts = dict.fromkeys(text for has, *parts in taken if has for text in (parts[0], "".join(parts)))
        tokens = dict(zip(texts, encode(list(texts)), strict=True)) if texts else {}
        for has_context, context, answer in taken:
            if has_context:
                yield tokens[context], tokens[context + answer][len(tokens[context]) :]
            else:
                (ids,) = encode([answer], False)
                yield (ids[:1], ids[1:]) if ids[:1] == [prefix_token] else ([prefix_token], ids)


def _parted(context: str, continuation: str) -> tuple[str, str]:
    """Spaces at the end of a context belong to what follows: tokens of words begin with them."""
    bare = context.rstrip()
    return bare, context[len(bare) :] + continuation
