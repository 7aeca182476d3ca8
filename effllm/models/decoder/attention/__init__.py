"""Attention variants by the name that `attention` has in a study and in config.json.

To add one: a file with a subclass of `Attention`, like `mla.py`, and a line here. Nothing here imports torch.
"""

from effllm.models.decoder.attention.gqa import GroupedQuery
from effllm.models.decoder.attention.mla import MultiHeadLatent
from effllm.models.decoder.attention.nsa import NativeSparse
from effllm.models.decoder.attention.variant import Attention

ATTENTION: dict[str, Attention] = {
    "mha": GroupedQuery(shared=None, is_fixed=True),
    # Qwen2.5 has 2 up to 3B.
    "gqa": GroupedQuery(shared=2, is_fixed=False),
    "mqa": GroupedQuery(shared=1, is_fixed=True),
    "mla": MultiHeadLatent(),
    "nsa": NativeSparse(),
}
