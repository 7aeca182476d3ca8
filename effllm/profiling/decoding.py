"""Greedy decoding of a set number of tokens, with the time of every token."""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from effllm.errors import CellFailure
from effllm.models.greedy import greedy_config

if TYPE_CHECKING:
    from effllm.models.loading import CausalLM


@dataclass(frozen=True)
class Generation:
    """Times of one generation in seconds: to the first token, and between tokens; tokens produced over the batch."""

    first_token_s: float
    token_s: list[float]
    generated_tokens: int

    @property
    def total_s(self) -> float:
        """Prefill and decoding together."""
        return self.first_token_s + sum(self.token_s)


class Decoding(Protocol):
    """Something that generates, and says how long it took."""

    def run(self) -> Generation:
        """Generate once. Raises `CellFailure` (invalid) where what comes out is not what was asked for."""


class TimedDecoding:
    """One prompt decoded again and again.

    `prompt` is [batch, prompt_tokens]; exactly `new_tokens` follow, end-of-text or not. The key-value cache is on.
    Of the model's own generation configuration only the ids of end-of-text and padding stay. `given` is what the model
    gets beside the tokens, such as images.
    """

    def __init__(
        self,
        model: "CausalLM",
        prompt: torch.Tensor,
        new_tokens: int,
        device: str,
        given: dict[str, torch.Tensor] | None = None,
    ):
        self.model, self.prompt, self.new_tokens, self.device = model, prompt, new_tokens, device
        self.given = given or {}
        own = model.generation_config
        ids = own.eos_token_id, own.pad_token_id
        # What the next line leaves open is taken from here.
        model.generation_config = greedy_config(*ids)
        self.config = greedy_config(*ids, min_new_tokens=new_tokens, max_new_tokens=new_tokens)

    @torch.inference_mode()
    def run(self) -> Generation:
        """Generate once. Raises `CellFailure` (invalid) if another number of tokens comes out than was asked for."""
        stamps = _Stamps(self.device)
        output = self.model.generate(
            self.prompt,
            attention_mask=torch.ones_like(self.prompt),
            generation_config=self.config,
            stopping_criteria=StoppingCriteriaList([stamps]),
            **self.given,
        )
        produced = output.shape[1] - self.prompt.shape[1]
        if produced != self.new_tokens:
            raise CellFailure("invalid", f"{produced} tokens were generated where {self.new_tokens} were asked for")
        first, *rest = stamps.seconds
        return Generation(first, rest, produced * output.shape[0])


class _Stamps(StoppingCriteria):
    """Called by `generate` after every token: notes the time since the last one and stops nothing."""

    def __init__(self, device: str):
        self.device = device
        self.seconds: list[float] = []
        self.clock = self._now()

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **_: Any) -> torch.BoolTensor:
        now = self._now()
        self.seconds.append(now - self.clock)
        self.clock = now
        goes_on = torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
        return cast(torch.BoolTensor, goes_on)

    def _now(self) -> float:
        if self.device != "cpu":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()
