"""Greedy decoding by CUDA graphs over a static cache: the speed of the device, without dispatch by the host."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from transformers import StaticCache
from transformers.cache_utils import StaticLayer, StaticSlidingWindowLayer

from effllm.errors import CellFailure, first_line
from effllm.profiling.decoding import Generation
from effllm.profiling.step_kernels import attending_by_one_query, compiled_step

if TYPE_CHECKING:
    from effllm.models.loading import CausalLM

WARMUP_RUNS = 3


class _PlainLayer(StaticLayer):
    """A layer of the static cache that knows when it is empty.

    Its length is a tensor, which a recording cannot look into, so that attention over a prompt would run under a mask
    over the whole cache, and not by the causal kernel that it runs by otherwise.
    """

    is_empty = False

    def get_seq_length(self) -> int:
        return 0 if self.is_empty else super().get_seq_length()


class StaticSteps:
    """Prefill and one decoding step of a prompt, on tensors that keep their places, which is what a graph can record.

    `prompt` is [batch, prompt_tokens]; `token`, [batch, 1], is the last one that was chosen. Keys and values of
    prompt and answer have their room from the start, as in the library's `StaticCache`. With `compiled` the step runs
    by kernels of torch.compile, each tuned on the device; products of one row are then reductions, which read the
    weights faster than cuBLAS does.

    Raises `CellFailure` (unsupported) for a model whose cache is not of that kind alone.
    """

    def __init__(self, model: "CausalLM", prompt: torch.Tensor, new_tokens: int, compiled: bool = False):
        self.model, self.prompt = model, prompt
        self._decoder = compiled_step(model) if compiled else model
        self._attending = attending_by_one_query if compiled else nullcontext
        name = type(model).__name__
        if not getattr(model, "_can_compile_fullgraph", False):
            raise CellFailure("unsupported", f"{name} takes no static cache, which a CUDA graph of decoding needs")
        length = prompt.shape[1] + new_tokens
        self.cache = StaticCache(config=model.config, max_cache_len=length)
        # Any other layer counts in Python, and a graph would repeat the count of its recording.
        if others := sorted({type(layer).__name__ for layer in self.cache.layers if not _is_plain(layer, length)}):
            raise CellFailure(
                "unsupported", f"{name} keeps {', '.join(others)} in its cache, which a CUDA graph cannot repeat"
            )
        self.layers = [_PlainLayer(max_cache_len=length) for _ in self.cache.layers]
        self.cache.layers = list(self.layers)
        self.token = torch.zeros((prompt.shape[0], 1), dtype=prompt.dtype, device=prompt.device)
        self._head = {"logits_to_keep": 1} if model._supports_logits_to_keep() else {}

    def prefill(self) -> None:
        """Forget what was cached, take in the prompt, choose the first token."""
        for layer in self.layers:
            layer.cumulative_length.zero_()
            layer.is_empty = True
        try:
            self._forward(self.model, self.prompt)
        finally:
            for layer in self.layers:
                layer.is_empty = False

    def step(self) -> None:
        """Take in the last token, choose the next.

        Raises `CellFailure` (unsupported) for a model that cannot be compiled, where it is to be.
        """
        try:
            with self._attending(self.model):
                self._forward(self._decoder, self.token)
        except Exception as error:
            # It takes a second to import, and so only where something failed.
            from torch._dynamo.exc import TorchDynamoException

            if not isinstance(error, TorchDynamoException):
                raise
            raise CellFailure(
                "unsupported", f"the model's decoding step cannot be compiled: {first_line(error)}"
            ) from error

    def cached_tokens(self) -> int:
        """How many tokens the cache holds now."""
        return int(self.layers[0].cumulative_length)

    def _forward(self, model: Callable[..., Any], tokens: torch.Tensor) -> None:
        output = model(input_ids=tokens, past_key_values=self.cache, use_cache=True, **self._head)
        self.token.copy_(output.logits[:, -1].argmax(-1, keepdim=True))


def _is_plain(layer: object, length: int) -> bool:
    """Whether a layer keeps all `length` tokens: it has no window, or one that is as long."""
    is_covered = type(layer) is StaticSlidingWindowLayer and layer.max_cache_len == length
    return is_covered or type(layer) is StaticLayer


class Graphs:
    """The two graphs of a prompt, recorded once and replayed by every generation.

    Raises `CellFailure` (unsupported) where there is no NVIDIA GPU, or where the model does on the host what a graph
    cannot hold.
    """

    @torch.inference_mode()
    def __init__(self, model: "CausalLM", prompt: torch.Tensor, new_tokens: int, device: str, compiled: bool = False):
        if not device.startswith("cuda"):
            raise CellFailure("unsupported", f"CUDA graphs need an NVIDIA GPU, and this ran on {device}")
        self.device = device
        self.steps = StaticSteps(model, prompt, new_tokens, compiled)
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        # A recording that fails leaves its stream the current one; this gives back what was current before.
        with torch.cuda.stream(stream):
            # Libraries allocate their workspaces and choose their kernels in the first runs; compilation is then too.
            for _ in range(WARMUP_RUNS):
                self.steps.prefill()
                self.steps.step()
            self.prefill, self.step = self._record(self.steps.prefill), self._record(self.steps.step)
        torch.cuda.current_stream(device).wait_stream(stream)

    def _record(self, work: Callable[[], None]) -> torch.cuda.CUDAGraph:
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self.device)
        try:
            # Other threads may call CUDA meanwhile.
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                work()
        except RuntimeError as error:
            cause = what_ended_recording(error)
            if cause is None:
                raise
            raise CellFailure("unsupported", f"a CUDA graph cannot hold the model's {work.__name__}: {cause}") from None
        return graph


def what_ended_recording(error: BaseException) -> str | None:
    """The first complaint of CUDA about a recording behind `error`, which may say only that it was ended; or None."""
    chain = [error]
    while chain[-1].__context__:
        chain.append(chain[-1].__context__)
    complaints = [str(each).splitlines()[0] for each in chain if "captur" in str(each)]
    return complaints[-1] if complaints else None


class GraphedDecoding:
    """One prompt decoded again and again by its graphs, `new_tokens` at a time, end-of-text or not."""

    def __init__(self, graphs: Graphs, new_tokens: int):
        self.graphs, self.new_tokens = graphs, new_tokens

    def run(self) -> Generation:
        """Generate once. Raises `CellFailure` (invalid) if the cache holds another number of tokens than it must."""
        graphs, steps = self.graphs, self.graphs.steps
        seconds = []
        torch.cuda.synchronize(graphs.device)
        clock = time.perf_counter()
        for graph in (graphs.prefill, *[graphs.step] * (self.new_tokens - 1)):
            graph.replay()
            torch.cuda.synchronize(graphs.device)
            now = time.perf_counter()
            seconds.append(now - clock)
            clock = now
        held, due = steps.cached_tokens(), steps.prompt.shape[1] + self.new_tokens - 1
        if held != due:
            raise CellFailure("invalid", f"{held} tokens are in the cache after a generation that caches {due}")
        first, *rest = seconds
        return Generation(first, rest, self.new_tokens * steps.prompt.shape[0])
