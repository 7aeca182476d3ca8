"""What native sparse attention keeps of the past."""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


class SparseCacheLayer(DynamicLayer):
    """The keys and values of NSA's three branches for one layer, each [batch, kv heads, tokens, head dim].

    keys, values: selection branch, every token: 2 * kv heads * head dim numbers per token.
    compressed_keys, compressed_values: compression branch, one entry per stride; entry c of row b summarises the tokens
        that start `stride * c` after that row's first real token.
    tail_keys, tail_values: the raw tokens of which no full block has been made, at most block - 1.
    window_keys, window_values: the last window - 1 tokens.
    """

    is_croppable = False
    _kept = ("compressed_keys", "compressed_values", "tail_keys", "tail_values", "window_keys", "window_values")

    def __init__(self) -> None:
        super().__init__()
        for name in self._kept:
            setattr(self, name, None)

    def extend(self, name: str, states: Tensor, keep: int) -> Tensor:
        """Append states to the pair member `name`, keep the last `keep` tokens, and return past and new together."""
        past = getattr(self, name)
        states = states if past is None else torch.cat((past, states), dim=2)
        setattr(self, name, states[:, :, max(0, states.shape[2] - keep) :])
        return states

    def write_compressed(self, name: str, states: Tensor, index: Tensor, capacity: int) -> Tensor:
        """Put states [batch, heads, n, d] at index [batch, n] of member `name`, grown to `capacity` entries."""
        past = getattr(self, name)
        batch, heads, _, dim = states.shape
        kept = 0 if past is None else min(past.shape[2], capacity)
        grown = states.new_zeros(batch, heads, capacity, dim)
        if kept:
            grown[:, :, :kept] = past[:, :, :kept]
        grown = grown.scatter(2, index[:, None, :, None].expand(batch, heads, -1, dim), states)
        setattr(self, name, grown)
        return grown

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        for name in self._kept:
            setattr(self, name, None)

    def crop(self, tokens_to_remove: int) -> None:
        """Refuse: the window and the tail no longer hold what the shorter sequence would need."""
        if tokens_to_remove:
            raise ValueError("the cache of attention nsa cannot be cropped: decode without assisted generation")

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Follow the beams."""
        super().reorder_cache(beam_idx)
        self._map(lambda states: states.index_select(0, beam_idx.to(states.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row."""
        super().batch_repeat_interleave(repeats)
        self._map(lambda states: states.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows of `indices`."""
        super().batch_select_indices(indices)
        self._map(lambda states: states[indices, ...])

    def _map(self, function: Callable[[Tensor], Tensor]) -> None:
        for name in self._kept:
            if getattr(self, name) is not None:
                setattr(self, name, function(getattr(self, name)))


def use_sparse_layers(cache: Cache, num_hidden_layers: int) -> None:
    """Give an empty DynamicCache, as `generate` makes it, the layers that NSA needs; idempotent."""
    for index in range(num_hidden_layers):
        if index == len(cache.layers):
            cache.layers.append(SparseCacheLayer())
        layer = cache.layers[index]
        if isinstance(layer, SparseCacheLayer):
            continue
        if type(layer) is not DynamicLayer or layer.is_initialized:
            raise ValueError(
                f"attention nsa cannot use a cache of {type(layer).__name__}: pass an empty DynamicCache, or none"
            )
        cache.layers[index] = SparseCacheLayer()
