"""Greedy decoding of a set number of tokens, with the time of every token."""

import contextlib
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from effllm.errors import CellFailure
from effllm.telemetry import Telemetry


@dataclass(frozen=True)
class Repeat:
    """Times of one generation in seconds: to the first token, between tokens, and the number of tokens produced."""

    first_token_s: float
    token_s: list[float]
    generated_tokens: int

    @property
    def total_s(self) -> float:
        """Prefill and decoding together."""
        return self.first_token_s + sum(self.token_s)

    def plain(self) -> dict[str, Any]:
        """JSON types."""
        return asdict(self)


class TimedDecoding:
    """One prompt decoded again and again.

    `prompt` is [batch, prompt_tokens]; exactly `new_tokens` follow, end-of-text or not. The key-value cache is on.
    """

    def __init__(self, model: PreTrainedModel, prompt: torch.Tensor, new_tokens: int, device: str):
        self.model, self.prompt, self.new_tokens, self.device = model, prompt, new_tokens, device
        self.config = GenerationConfig(
            min_new_tokens=new_tokens,
            max_new_tokens=new_tokens,
            do_sample=False,
            use_cache=True,
            eos_token_id=model.config.eos_token_id,
            pad_token_id=model.config.pad_token_id or 0,
        )

    @torch.inference_mode()
    def run(self, telemetry: Telemetry | None = None) -> Repeat:
        """Generate once; with `telemetry`, inside windows `inference`, `prefill` and `decode`."""
        stamps = _Stamps(telemetry, self.device)
        with telemetry.window("inference") if telemetry else contextlib.nullcontext():
            stamps.start()
            output = self.model.generate(
                self.prompt,
                attention_mask=torch.ones_like(self.prompt),
                generation_config=self.config,
                stopping_criteria=StoppingCriteriaList([stamps]),
            )
            stamps.stop()
        produced = output.shape[1] - self.prompt.shape[1]
        if produced != self.new_tokens:
            raise CellFailure("invalid", f"{produced} tokens were generated where {self.new_tokens} were asked for")
        return Repeat(stamps.first_token_s, stamps.token_s, produced * output.shape[0])


class _Stamps(StoppingCriteria):
    """Called by `generate` after every token: notes the time and stops nothing.

    The time that opening and closing windows takes lies between the first token's stamp and the restart of the
    clock, in neither latency.
    """

    def __init__(self, telemetry: Telemetry | None, device: str):
        self.telemetry, self.device = telemetry, device
        self.first_token_s = 0.0
        self.token_s: list[float] = []
        self.is_first = True

    def start(self) -> None:
        if self.telemetry:
            self.telemetry.begin_window("prefill")
        self.clock = self._now()

    def stop(self) -> None:
        if self.telemetry:
            self.telemetry.end_window("decode")

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **_: Any) -> torch.BoolTensor:
        now = self._now()
        if self.is_first:
            self.is_first = False
            self.first_token_s = now - self.clock
            if self.telemetry:
                self.telemetry.end_window("prefill")
                self.telemetry.begin_window("decode")
            now = self._now()
        else:
            self.token_s.append(now - self.clock)
        self.clock = now
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)

    def _now(self) -> float:
        if self.device != "cpu":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()
