"""Settings of Transformers' continuous batching."""

import math
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from effllm.errors import CellFailure
from effllm.fields import Dimension, PositiveFloat
from effllm.serving.engines.settings import EngineSettings, Served
from effllm.serving.load import Load

if TYPE_CHECKING:
    from effllm.serving.engine import Engine


class TransformersEngine(EngineSettings):
    """Continuous batching with paged attention by Transformers, in the stage's own process."""

    kind: Literal["transformers"]
    page_size: Annotated[Dimension, Field(ge=4)] = Field(default=32, description="Tokens of a page of the cache.")
    num_blocks: Dimension | None = Field(
        default=None,
        description="Pages of the cache, for each layer. What does not fit is interrupted, and computed again later.",
    )
    cache_gb: PositiveFloat | None = Field(
        default=None,
        description="Instead of num_blocks: as many pages as so many GB hold, more of a model with a smaller cache.",
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
    flash_attention: Literal["varlen"] | bool = Field(
        default=False,
        description="Attention by the package flash-attn, which must be installed, or varlen, which is PyTorch's own; "
        "false takes SDPA, of every request with the keys of all.",
    )
    cuda_graphs: bool | None = Field(
        default=None, description="Replay forward passes as CUDA graphs; null where attention takes no mask."
    )
    compile_level: Annotated[int, Field(ge=0, le=3)] = Field(
        default=0, description="How far torch.compile goes, by Transformers' default_compile_level; 0 is not at all."
    )
    in_process: ClassVar[bool] = True

    @model_validator(mode="after")
    def _has_one_size(self) -> "TransformersEngine":
        if (self.num_blocks is None) == (self.cache_gb is None):
            raise ValueError("the size of the cache is either num_blocks or cache_gb: give one of them")
        return self

    def open(self, served: Served) -> "Engine":
        """The engine with the model loaded."""
        from effllm.serving.engines.continuous import ContinuousEngine

        return ContinuousEngine.load(self, served)

    def misfit(self, load: Load) -> str | None:
        """Whether the longest request fits the cache alone."""
        needed = math.ceil(load.longest / self.page_size)
        if self.num_blocks is None or needed < self.num_blocks:
            return None
        return (
            f"num_blocks {self.num_blocks} of page_size {self.page_size} holds less than a request of "
            f"{load.longest} tokens and the one to come; give it more than {needed}"
        )

    def cached_tokens(self) -> int | None:
        """Tokens that its cache holds; None where its bytes are given."""
        return self.num_blocks and self.num_blocks * self.page_size

    def cache_b(self) -> float | None:
        """Bytes of its cache, where they are given."""
        return self.cache_gb and 1e9 * self.cache_gb

    def blocks(self, token_b: float, longest: int) -> int:
        """Pages that `cache_gb` hold of tokens of so many bytes; `CellFailure` where a request does not fit."""
        assert self.cache_gb is not None
        blocks = int(1e9 * self.cache_gb / (self.page_size * token_b))
        if blocks <= math.ceil(longest / self.page_size):
            raise CellFailure("oom", f"cache_gb {self.cache_gb:g} holds less than a request of {longest} tokens")
        return blocks

    def batch_tokens(self) -> int:
        """Tokens that are computed at once at most."""
        return self.max_batch_tokens
