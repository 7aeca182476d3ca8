"""Settings of Transformers' continuous batching."""

import math
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from effllm.fields import Dimension
from effllm.serving.engines.settings import EngineSettings, Served
from effllm.serving.load import Load

if TYPE_CHECKING:
    from effllm.serving.engine import Engine


class TransformersEngine(EngineSettings):
    """Continuous batching with paged attention by Transformers, in the stage's own process."""

    kind: Literal["transformers"]
    page_size: Annotated[Dimension, Field(ge=4)] = Field(default=32, description="Tokens of a page of the cache.")
    num_blocks: Dimension = Field(
        description="Pages of the cache, for each layer. What does not fit is interrupted, and computed again later."
    )
    max_batch_tokens: Dimension = Field(
        description="Tokens of a forward pass, at most: one of each sequence that is decoded, the rest of prompts."
    )
    max_requests: Dimension | None = Field(
        default=None, description="Requests of a forward pass, at most; null leaves it to the tokens and the cache."
    )
    shares_prefixes: bool = Field(
        default=False, description="Whether pages are shared by prompts that begin alike, of earlier requests too."
    )
    flash_attention: bool = Field(
        default=False, description="Attention by the package flash-attn, which must be installed; false takes SDPA."
    )
    cuda_graphs: bool | None = Field(
        default=None, description="Replay forward passes as CUDA graphs; null where attention takes no mask."
    )
    compile_level: Annotated[int, Field(ge=0, le=3)] = Field(
        default=0, description="How far torch.compile goes, by Transformers' default_compile_level; 0 is not at all."
    )
    in_process: ClassVar[bool] = True

    def open(self, served: Served) -> "Engine":
        """The engine with the model loaded."""
        from effllm.serving.engines.continuous import ContinuousEngine

        return ContinuousEngine.load(self, served)

    def misfit(self, load: Load) -> str | None:
        """Whether the longest request fits the cache alone."""
        needed = math.ceil(load.longest / self.page_size)
        if needed < self.num_blocks:
            return None
        return (
            f"num_blocks {self.num_blocks} of page_size {self.page_size} hold less than a request of "
            f"{load.longest} tokens and the one to come; give it more than {needed}"
        )

    def cached_tokens(self) -> int:
        """Tokens that its cache holds."""
        return self.num_blocks * self.page_size

    def batch_tokens(self) -> int:
        """Tokens that are computed at once at most."""
        return self.max_batch_tokens
