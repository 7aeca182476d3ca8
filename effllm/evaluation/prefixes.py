"""Log-likelihoods of many prompts that begin alike: what they share is read by the model once.

Few-shot prompts of a task share their examples, which are most of their tokens, and the choices of an item share the
item. Inputs are sorted by their tokens, so that those with a long beginning in common are neighbours; the keys and
values of that beginning are computed once, and every input goes on from them. The values are those of whole prompts up
to rounding: the same numbers are added in another order.
"""

import copy
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

# A beginning that is shorter is not worth a pass of its own.
_LEAST_SHARED = 32

Tokens = tuple[int, ...]


@dataclass
class Group:
    """Inputs that begin with the same `shared` tokens; none of them ends there."""

    shared: int
    inputs: list[Tokens]


def groups(inputs: Iterable[Tokens]) -> list[Group]:
    """`inputs`, which all differ, in groups by what they begin with."""
    made: list[Group] = []
    for tokens in sorted(inputs):
        if made:
            last = made[-1]
            common = min(_common(last.inputs[0], tokens), len(tokens) - 1, last.shared)
            # A group keeps most of its beginning, or its many inputs would pay for one that is unlike them.
            if common >= _LEAST_SHARED and (2 * common >= last.shared or len(last.inputs) == 1):
                last.shared = common
                last.inputs.append(tokens)
                continue
        made.append(Group(len(tokens) - 1, [tokens]))
    return made


def log_likelihoods(
    model: Callable[..., Any],
    asked: Mapping[Tokens, Sequence[tuple[int, Tokens]]],
    batch_size: int,
    device: Any,
    keeps: bool = False,
) -> Iterator[tuple[int, float, bool]]:
    """Yield (number of the request, log-likelihood, whether it is what the model would decode), as `by_input` asks.

    keeps: the model takes `logits_to_keep`, so that it makes no logits of what is only read.
    """
    wanted = {tokens: max(len(continuation) for _, continuation in ends) for tokens, ends in asked.items()}
    for group in groups(wanted):
        # Together where they are of a length, so that little is padding.
        rows = sorted(group.inputs, key=len, reverse=True)
        shared = group.shared if len(rows) > 1 else 0
        # What is wanted has to lie behind what is shared.
        shared = min([shared, *(len(row) - wanted[row] for row in rows)])
        cache = _cache(model, rows[0][:shared], device, keeps) if shared >= _LEAST_SHARED else None
        if cache is None:
            shared = 0
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            longest = len(batch[0]) - shared
            kept = max(longest - (len(row) - shared - wanted[row]) for row in batch) if keeps else longest
            logits = _continued(model, [row[shared:] for row in batch], cache, device, kept if keeps else None)
            ends = [kept - (longest - (len(row) - shared)) for row in batch]
            yield from _answers(logits, batch, ends, wanted, asked)


def _answers(
    logits: torch.Tensor,
    batch: Sequence[Tokens],
    ends: Sequence[int],
    wanted: Mapping[Tokens, int],
    asked: Mapping[Tokens, Sequence[tuple[int, Tokens]]],
) -> Iterator[tuple[int, float, bool]]:
    """The requests of `batch`, whose logits end before the positions `ends`, by one copy from the device."""
    rows = [number for number, row in enumerate(batch) for _ in range(wanted[row])]
    positions = [at for row, end in zip(batch, ends, strict=True) for at in range(end - wanted[row], end)]
    found = torch.log_softmax(logits[rows, positions].float(), dim=-1)
    numbers: list[int] = []
    lengths: list[int] = []
    places: list[int] = []
    ids: list[int] = []
    behind = 0
    for row in batch:
        behind += wanted[row]
        for number, continuation in asked[row]:
            numbers.append(number)
            lengths.append(len(continuation))
            places += range(behind - len(continuation), behind)
            ids += continuation
    at, tokens = (torch.tensor(values, device=found.device) for values in (places, ids))
    scores = found[at, tokens].cpu().split(lengths)
    greedy = (found.argmax(dim=-1)[at] == tokens).cpu().split(lengths)
    for number, score, same in zip(numbers, scores, greedy, strict=True):
        yield number, float(score.sum()), bool(same.all())


def by_input(
    requests: Sequence[tuple[list[int], list[int]]], max_length: int
) -> dict[Tokens, list[tuple[int, Tokens]]]:
    """(number of the request, its continuation) by what the model has to read: cut from the left as lm-eval cuts it.

    Requests are (context, continuation) as tokens.
    """
    found: dict[Tokens, list[tuple[int, Tokens]]] = defaultdict(list)
    for number, (context, continuation) in enumerate(requests):
        # The last token is scored and never read.
        tokens = tuple((context + continuation)[-(max_length + 1) :][:-1])
        found[tokens].append((number, tuple(continuation)))
    return found


def _common(one: Tokens, other: Tokens) -> int:
    length = min(len(one), len(other))
    return next((at for at in range(length) if one[at] != other[at]), length)


def _cache(model: Callable[..., Any], tokens: Tokens, device: Any, keeps: bool) -> DynamicCache | None:
    """Keys and values of `tokens`; None of a model that keeps anything else."""
    head = {"logits_to_keep": 1} if keeps else {}
    cache = getattr(model(torch.tensor([tokens], device=device), use_cache=True, **head), "past_key_values", None)
    if not isinstance(cache, DynamicCache) or any(type(layer) is not DynamicLayer for layer in cache.layers):
        return None
    return cache


def _continued(
    model: Callable[..., Any], rows: list[Tokens], cache: DynamicCache | None, device: Any, kept: int | None
) -> torch.Tensor:
    """Logits of `rows`, which go on from `cache`, [rows, longest, vocabulary]; behind a row's end is padding.

    Of the last `kept` positions alone, if a number is given.
    """
    head = {} if kept is None else {"logits_to_keep": kept}
    longest = max(map(len, rows))
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(row)
    if cache is None:
        return model(ids.to(device), **head).logits
    # A pass adds to the cache that it is given.
    own = copy.deepcopy(cache)
    own.batch_repeat_interleave(len(rows))
    return model(ids.to(device), past_key_values=own, use_cache=True, **head).logits
