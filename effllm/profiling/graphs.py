"""Greedy decoding by CUDA graphs over a static cache: the speed of the device, without dispatch by the host."""

import time
from collections.abc import Callable

import torch
from transformers import PreTrainedModel, StaticCache
from transformers.cache_utils import CacheLayerMixin, StaticLayer, StaticSlidingWindowLayer

from effllm.errors import CellFailure
from effllm.profiling.decoding import Generation

WARMUP_RUNS = 3


class StaticSteps:
    """Prefill and one decoding step of a prompt, on tensors that keep their places, which is what a graph can record.

    `prompt` is [batch, prompt_tokens]; `token`, [batch, 1], is the last one that was chosen. Keys and values of
    prompt and answer have their room from the start, as in the library's `StaticCache`.

    Raises `CellFailure` (unsupported) for a model whose cache is not of that kind alone.
    """

    def __init__(self, model: PreTrainedModel, prompt: torch.Tensor, new_tokens: int):
        self.model, self.prompt = model, prompt
        name = type(model).__name__
        if not getattr(model, "_can_compile_fullgraph", False):
            raise CellFailure("unsupported", f"{name} takes no static cache, which a CUDA graph of decoding needs")
        length = prompt.shape[1] + new_tokens
        self.cache = StaticCache(config=model.config, max_cache_len=length)
        # A layer with a window counts in Python, and a graph would repeat the count of its recording.
        self.cache.layers = [_without_window(layer, length) for layer in self.cache.layers]
        if others := sorted({type(layer).__name__ for layer in self.cache.layers if type(layer) is not StaticLayer}):
            raise CellFailure(
                "unsupported", f"{name} keeps {', '.join(others)} in its cache, which a CUDA graph cannot repeat"
            )
        self.token = torch.zeros((prompt.shape[0], 1), dtype=prompt.dtype, device=prompt.device)
        self._head = {"logits_to_keep": 1} if model._supports_logits_to_keep() else {}

    def prefill(self) -> None:
        """Forget what was cached, take in the prompt, choose the first token."""
        for layer in self.cache.layers:
            layer.cumulative_length.zero_()
        self._forward(self.prompt)

    def step(self) -> None:
        """Take in the last token, choose the next."""
        self._forward(self.token)

    def cached_tokens(self) -> int:
        """How many tokens the cache holds now."""
        return int(self.cache.layers[0].cumulative_length)

    def _forward(self, tokens: torch.Tensor) -> None:
        output = self.model(input_ids=tokens, past_key_values=self.cache, use_cache=True, **self._head)
        self.token.copy_(output.logits[:, -1].argmax(-1, keepdim=True))


def _without_window(layer: CacheLayerMixin, length: int) -> CacheLayerMixin:
    """A plain layer in place of one whose window is as long as everything that is cached."""
    is_covered = type(layer) is StaticSlidingWindowLayer and layer.max_cache_len == length
    return StaticLayer(max_cache_len=length) if is_covered else layer


class Graphs:
    """The two graphs of a prompt, recorded once and replayed by every generation.

    Raises `CellFailure` (unsupported) where there is no NVIDIA GPU, or where the model does on the host what a graph
    cannot hold.
    """

    @torch.inference_mode()
    def __init__(self, model: PreTrainedModel, prompt: torch.Tensor, new_tokens: int, device: str):
        if not device.startswith("cuda"):
            raise CellFailure("unsupported", f"CUDA graphs need an NVIDIA GPU, and this ran on {device}")
        self.device = device
        self.steps = StaticSteps(model, prompt, new_tokens)
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        # Libraries allocate their workspaces and choose their kernels in the first runs.
        with torch.cuda.stream(stream):
            for _ in range(WARMUP_RUNS):
                self.steps.prefill()
                self.steps.step()
        torch.cuda.current_stream(device).wait_stream(stream)
        self.prefill, self.step = self._record(self.steps.prefill), self._record(self.steps.step)

    def _record(self, work: Callable[[], None]) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads may call CUDA meanwhile.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                work()
        except RuntimeError as error:
            if "captur" not in str(error):
                raise
            reason = f"a CUDA graph cannot hold the model's {work.__name__}: {str(error).splitlines()[0]}"
            raise CellFailure("unsupported", reason) from None
        return graph


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
