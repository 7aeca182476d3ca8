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


def log_probabilities(
    model: Callable[..., Any], wanted: Mapping[Tokens, int], batch_size: int, device: Any
) -> Iterator[tuple[Tokens, torch.Tensor]]:
    """Yield each input with the log-probabilities at its last positions, float32 [positions, vocabulary].

    wanted: how many positions, by input.
    """
    for group in groups(wanted):
        # Together where they are of a length, so that little is padding.
        rows = sorted(group.inputs, key=len, reverse=True)
        shared = group.shared if len(rows) > 1 else 0
        # What is wanted has to lie behind what is shared.
        shared = min([shared, *(len(row) - wanted[row] for row in rows)])
        cache = _cache(model, rows[0][:shared], device) if shared >= _LEAST_SHARED else None
        if cache is None:
            shared = 0
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            logits = _continued(model, [row[shared:] for row in batch], cache, device)
            for row, found in zip(batch, logits, strict=True):
                end = len(row) - shared
                yield row, torch.log_softmax(found[end - wanted[row] : end].float(), dim=-1)


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


def _cache(model: Callable[..., Any], tokens: Tokens, device: Any) -> DynamicCache | None:
    """Keys and values of `tokens`; None of a model that keeps anything else."""
    cache = getattr(model(torch.tensor([tokens], device=device), use_cache=True), "past_key_values", None)
    if not isinstance(cache, DynamicCache) or any(type(layer) is not DynamicLayer for layer in cache.layers):
        return None
    return cache


def _continued(model: Callable[..., Any], rows: list[Tokens], cache: DynamicCache | None, device: Any) -> torch.Tensor:
    """Logits of `rows`, which go on from `cache`, [rows, longest, vocabulary]; behind a row's end is padding."""
    longest = max(map(len, rows))
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(row)
    if cache is None:
        return model(ids.to(device)).logits
    # A pass adds to the cache that it is given.
    own = copy.deepcopy(cache)
    own.batch_repeat_interleave(len(rows))
    return model(ids.to(device), past_key_values=own, use_cache=True).logits
