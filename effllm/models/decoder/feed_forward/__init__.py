"""Feed-forward layers by the name that `feed_forward` has in a study and in config.json.

To add one: a file with a subclass of `FeedForward`, like `moe.py`, and a line here. Nothing here imports torch.
"""

from effllm.models.decoder.feed_forward.gelu import TwoMatrices
from effllm.models.decoder.feed_forward.moe import Mixture
from effllm.models.decoder.feed_forward.swiglu import Dense
from effllm.models.decoder.feed_forward.variant import FeedForward

FEED_FORWARD: dict[str, FeedForward] = {"swiglu": Dense(), "gelu": TwoMatrices(), "moe": Mixture()}
