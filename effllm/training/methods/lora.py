"""LoRA."""

from typing import Literal

from effllm.training.methods.low_rank import LowRankMethod


class LoraMethod(LowRankMethod):
    """LoRA (Hu et al., arXiv 2106.09685): B starts at zero, the scale is alpha / rank."""

    kind: Literal["lora"]
