"""lm-eval's Hugging Face model with a meter: what the requests of an evaluation cost.

The meter only watches. Scores are those of `HFLM` with two settings of its own. Log-probabilities are computed in
float32 from the model's logits: HFLM's default computes and sums them in the model's precision; a sum near -150
in bfloat16 is rounded to a whole number, and a pair of sentences one swap apart then ties by rounding. And every text
begins as the model's tokenizer begins it, once: HFLM's rolling likelihood puts a begin-of-text token before the one
that the tokenizers of Llama and Gemma have put there, and scores that one. What the model's own files ask of generation
is left out: a task decodes as it says itself, and greedily where it says nothing.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from jinja2.exceptions import TemplateError
from lm_eval.models.huggingface import HFLM

from effllm.data.tokenizer import begin_of_text
from effllm.errors import CellFailure, reason_of
from effllm.evaluation.batches import AUTO, automatic_size, clear_memory, is_out_of_memory
from effllm.evaluation.pairs import encoded_pairs
from effllm.evaluation.prefixes import by_input, log_likelihoods
from effllm.models.greedy import decode_greedily
from effllm.runtime.progress import Progress

log = logging.getLogger(__name__)
_Answers = TypeVar("_Answers")


@dataclass
class KindCost:
    """Cost of the requests of one kind (loglikelihood, loglikelihood_rolling or generate_until).

    `scored_tokens` were given and scored; `generated_tokens` were decoded, up to and with an end-of-text token.
    A row that has met its stop string is decoded on until its batch is done, and these tokens count too: they cost
    the same. `model_seconds` is time inside the model's forward and generate calls, device work included.
    `truncated_requests` were longer than the model's context: their prompts were cut from the left.
    """

    requests: int = 0
    truncated_requests: int = 0
    scored_tokens: int = 0
    generated_tokens: int = 0
    model_calls: int = 0
    model_seconds: float = 0.0


@dataclass
class Meter:
    """Costs by kind of request, how many answers were not finite numbers, and the batches that were run.

    `batch_size` is the smallest of the kinds', `batch_halvings` how often memory ran out.
    """

    kinds: dict[str, KindCost] = field(default_factory=dict)
    not_finite: int = 0
    batch_size: int | None = None
    batch_halvings: int = 0

    def total(self) -> KindCost:
        """The sum over the kinds."""
        costs = [asdict(cost) for cost in self.kinds.values()]
        return KindCost(**{name: sum(cost[name] for cost in costs) for name in asdict(KindCost())})


class MeteredLM(HFLM):
    """`HFLM` over a loaded model and tokenizer, counting into `meter`."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        batch_size: int | Literal["auto"],
        max_length: int | None,
        ends_turns: bool = False,
        shares_prefixes: bool = False,
    ):
        """`max_length` shortens the model's own limit and never lengthens it; None keeps it.

        `batch_size` "auto" takes as many requests at once as memory holds, for each kind of request anew; where memory
        runs out nevertheless, or with a number, the batch is halved and the requests begin again.
        `ends_turns` as of `decode_greedily`. `shares_prefixes`: what prompts begin with alike is read once.
        """
        first = 1 if batch_size == AUTO else batch_size
        super().__init__(
            pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=first, softmax_dtype="float32"
        )
        self._is_automatic = batch_size == AUTO
        self._max_length = min(self.max_length, max_length or self.max_length)
        # After HFLM has given a tokenizer without a padding token one of its own choice.
        self.ignored_generation_settings = decode_greedily(model, tokenizer, ends_turns)
        self._begin = begin_of_text(tokenizer)
        self._is_rolling = False
        self._shares_prefixes = shares_prefixes
        self.meter = Meter()
        self._cost = KindCost()
        self._bar = Progress(unit="requests", label="warm-up")

    def warm_up(self, generates: bool) -> None:
        """Run the model once outside the meter, so that lazy compilation and allocation are not measured.

        Raises `FloatingPointError` if the logits hold NaN: then no answer of the model means anything.
        """
        length = min(16, self.max_length - 2)
        ids = torch.arange(length, device=self.device).repeat(self.batch_size, 1) % self.vocab_size
        with torch.no_grad():
            logits = self.model(ids).logits
            if generates:
                self.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=2)
        if logits.isnan().any():
            raise FloatingPointError("the model's logits hold NaN")

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        with self._metered("loglikelihood", requests):
            pairs = [request.args for request in requests]
            encoded = encoded_pairs(pairs, self._encode_all, self.prefix_token_id)
            asked = [(pair, *ids) for pair, ids in zip(pairs, encoded, strict=True)]
            longest = max(asked, key=lambda request: len(request[1]) + len(request[2]))
            answers = self._within_memory(
                partial(self._loglikelihood_tokens, asked),
                partial(self._loglikelihood_tokens, [longest]),
                len(longest[1]) + len(longest[2]) - 1,
            )
        self._note_not_finite(score for score, _ in answers)
        return answers

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[float]:
        run = partial(super().loglikelihood_rolling, disable_tqdm=True)
        longest = max(requests, key=lambda request: len(request.args[0]))
        self._is_rolling = True
        with self._metered("loglikelihood_rolling", requests):
            answers: list[float] = self._within_memory(
                partial(run, requests), partial(run, [longest]), len(self.tok_encode(longest.args[0]))
            )
        self._is_rolling = False
        self._note_not_finite(answers)
        return answers

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
        longest = max((request.args[0] for request in requests), key=len)
        new = max(request.args[1].get("max_gen_toks", self.max_gen_toks) for request in requests)
        # A prompt that fills what prompt and answer fill in the end: its cache is as large, and its pass is larger.
        tokens = min(len(self.tok_encode(longest)) + new, self.max_length)
        prompt = torch.zeros(1, max(1, tokens - 2), dtype=torch.long, device=self.device)
        with self._metered("generate_until", requests):
            return self._within_memory(
                partial(super().generate_until, requests, disable_tqdm=True),
                lambda: self.model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=2),
                tokens,
            )

    def _within_memory(self, run: Callable[[], _Answers], run_one: Callable[[], object], tokens: int) -> _Answers:
        """What `run` returns, in batches that memory holds; `run_one` handles the longest request, of `tokens` tokens.

        Requests are sorted by length, the longest first, so memory that does not suffice runs out early.
        """
        spent, drawn = asdict(self._cost), _random_states()
        if self._is_automatic:
            self.batch_size_per_gpu = 1
            self.batch_size_per_gpu = automatic_size(self.model, min(tokens, self.max_length), run_one)
            log.info("%d requests at once, of at most %d tokens", self.batch_size, min(tokens, self.max_length))
        while True:
            # What was run for the measure, or in vain, is no cost of the requests.
            vars(self._cost).update(spent)
            # Nor does it change what a task that samples draws.
            _set_random_states(drawn)
            try:
                answers = run()
            except (RuntimeError, MemoryError) as error:
                if self.batch_size == 1 or not is_out_of_memory(error):
                    raise
            else:
                self.meter.batch_size = min(self.batch_size, self.meter.batch_size or self.batch_size)
                return answers
            # Outside of the handler, which would keep what the failed call had allocated.
            clear_memory()
            log.warning("out of memory with %d requests at once: again with %d", self.batch_size, self.batch_size // 2)
            self.batch_size_per_gpu //= 2
            self.meter.batch_halvings += 1

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = True, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        self._cost.scored_tokens += sum(len(continuation) for _, _, continuation in requests)
        longest = max((len(continuation) for _, _, continuation in requests), default=0)
        if longest > self.max_length:
            raise CellFailure(
                "unsupported", f"an answer of {longest} tokens does not fit the context of {self.max_length} tokens"
            )
        # The last token is scored and never read, so one more than the context fits.
        lengths = (len(context) + len(continuation) for _, context, continuation in requests)
        self._cost.truncated_requests += sum(length > self.max_length + 1 for length in lengths)
        if self._shares_prefixes and not self._is_rolling:
            return self._with_shared_prefixes([(context, continuation) for _, context, continuation in requests])
        return super()._loglikelihood_tokens(requests, disable_tqdm=True, override_bs=override_bs)

    def _with_shared_prefixes(self, requests: list[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """As HFLM scores (context, continuation), up to rounding."""
        asked = by_input(requests, self.max_length)
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        keeps = self.model._supports_logits_to_keep()
        with torch.inference_mode():
            found = log_likelihoods(self._timed_model, asked, self.batch_size, self.device, keeps)
            for number, score, is_greedy in found:
                answers[number] = (score, is_greedy)
        return answers

    def _timed_model(self, *args: Any, **kwargs: Any) -> Any:
        with self._timed():
            return self.model(*args, **kwargs)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as HFLM writes it; `CellFailure` where the template has no place for it."""
        try:
            return super().apply_chat_template(chat_history, add_generation_prompt)
        except (TemplateError, ValueError) as error:
            raise CellFailure("unsupported", f"the chat template refuses a prompt: {reason_of(error)}") from error

    def rolling_ids(self, text: str) -> list[int]:
        """Ids of a text whose rolling likelihood is asked for."""
        return self._without_begin(self.tokenizer.encode(text, add_special_tokens=False))

    def _without_begin(self, ids: list[int]) -> list[int]:
        # The harness itself puts the token before the text on which the first one is conditioned.
        return ids[1:] if ids[:1] == [self.prefix_token_id] else ids

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,
        left_truncate_len: int | None = None,
        **kwargs: Any,
    ) -> list[int]:
        """Ids of `string`, which begins with the tokenizer's begin-of-text token once, whoever puts it there.

        Nothing is put behind it: a tokenizer that ends texts would end the prompt, and shift where an answer begins.
        """
        (ids,) = self._encode_all([string], add_special_tokens)
        return ids[-left_truncate_len:] if left_truncate_len else ids

    def _encode_all(self, strings: list[str], add_special_tokens: bool | None = None) -> list[list[int]]:
        encoding = self.tokenizer(strings, add_special_tokens=False, return_attention_mask=False)
        rows: list[list[int]] = encoding["input_ids"]
        if self._is_rolling:
            return [self._without_begin(ids) for ids in rows]
        if add_special_tokens is False:
            return rows
        return [ids if ids[: len(self._begin)] == self._begin else [*self._begin, *ids] for ids in rows]

    def tok_batch_encode(
        self,
        strings: list[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows = self._encode_all(strings)
        padded = self.tokenizer.pad({"input_ids": rows}, padding_side=padding_side, return_tensors="pt")
        ids, mask = padded["input_ids"], padded["attention_mask"]
        if left_truncate_len:
            self._cost.truncated_requests += int((mask.sum(dim=1) > left_truncate_len).sum())
            ids, mask = ids[:, -left_truncate_len:], mask[:, -left_truncate_len:]
        return ids, mask

    def _model_call(self, inps: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        with self._timed():
            return super()._model_call(inps, *args, **kwargs)

    def _model_generate(self, context: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        with self._timed():
            output = super()._model_generate(context, *args, **kwargs)
        self._cost.generated_tokens += generated_tokens(output[:, context.shape[1] :], self.end_ids())
        return output

    def end_ids(self) -> list[int]:
        """The tokens at which decoding ends."""
        ids = self.model.generation_config.eos_token_id
        if ids is None:
            return []
        return [ids] if isinstance(ids, int) else list(ids)

    @contextmanager
    def _metered(self, kind: str, requests: list[Any]) -> Iterator[None]:
        self._cost = self.meter.kinds.setdefault(kind, KindCost())
        self._cost.requests += len(requests)
        # How many calls the requests make is the harness's affair (it merges and splits them), so no total is shown.
        with Progress(unit="model calls", label=f"{len(requests):,} {kind} requests") as self._bar:
            yield

    @contextmanager
    def _timed(self) -> Iterator[None]:
        self._synchronize()
        start = time.perf_counter()
        yield
        self._synchronize()
        self._cost.model_seconds += time.perf_counter() - start
        self._cost.model_calls += 1
        self._bar.update()

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _note_not_finite(self, scores: Any) -> None:
        self.meter.not_finite += sum(not abs(score) < float("inf") for score in scores)


def _random_states() -> tuple[torch.Tensor, list[torch.Tensor]]:
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []


def _set_random_states(states: tuple[torch.Tensor, list[torch.Tensor]]) -> None:
    torch.set_rng_state(states[0])
    if states[1]:
        torch.cuda.set_rng_state_all(states[1])


def generated_tokens(new: torch.Tensor, end_ids: list[int]) -> int:
    """Tokens decoded in `new`, shape [batch, steps]: of each row those up to and with its first end-of-text."""
    is_end = torch.isin(new, torch.tensor(end_ids, device=new.device, dtype=new.dtype)).long()
    # What follows the first end is padding, even where the padding token is the end-of-text token itself.
    ends_before = is_end.cumsum(dim=1) - is_end
    return int((ends_before == 0).sum())
