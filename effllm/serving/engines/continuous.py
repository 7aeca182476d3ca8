"""Transformers' continuous batching with paged attention, in this process: a thread generates, this one sends."""

import logging
import queue
import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers import ContinuousBatchingConfig

from effllm.errors import CellFailure, EngineError, reason_of
from effllm.models.costs import cache_bytes_per_token
from effllm.models.greedy import decode_greedily, greedy_config
from effllm.models.text import context_length
from effllm.quantization.loading import load_quantized
from effllm.serving.engine import EngineDescription, EngineUsage, TokenEvent
from effllm.serving.engines.varlen import use_varlen
from effllm.serving.trace import TracedRequest

if TYPE_CHECKING:
    from transformers import ContinuousBatchingManager

    from effllm.models.loading import CausalLM
    from effllm.serving.engines.settings import Served
    from effllm.serving.engines.transformers import TransformersEngine

# An id that no token has: what is generated has the length that was asked for.
_NO_END = -1
_STEP_S, _STOP_S = 1.0, 30.0
# A tenth of what it is by default: the thread that sends waits no longer for the one that generates.
_SWITCH_S = 5e-4
_LIBRARY_LOG = "ContinuousBatchingLogger"


class ContinuousEngine:
    """Serves a model that is loaded, requests of `longest` tokens at most; `kernel` runs its quantized layers."""

    def __init__(self, settings: "TransformersEngine", model: "CausalLM", longest: int = 1, kernel: str | None = None):
        self._settings, self._longest, self._kernel = settings, longest, kernel
        self._model: Any = model.eval()
        self._manager: ContinuousBatchingManager | None = None
        self._indices: dict[str, int] = {}
        self._arrived: dict[str, int] = {}
        self._sent = 0
        self._preempted = 0
        self._switch_s = sys.getswitchinterval()

    @classmethod
    def load(cls, settings: "TransformersEngine", served: "Served") -> "ContinuousEngine":
        """The engine with a model in its precision on its device."""
        if len(served.devices) > 1:
            raise CellFailure(
                "unsupported", f"the engine serves from one device, and the model takes {len(served.devices)}"
            )
        model, precision = load_quantized(served.artifact, served.devices)
        positions = context_length(model.config)
        if positions and served.longest > positions:
            raise CellFailure("unsupported", f"the model has {positions} positions, {served.longest} are needed")
        decode_greedily(model, None)
        return cls(settings, model, served.longest, precision.running_kernel(model))

    @property
    def description(self) -> EngineDescription:
        """What it runs by, as far as the library has chosen it."""
        flags = {key: value for key, value in self._settings.plain().items() if key != "kind"}
        flags |= {"attention": self._model.config._attn_implementation, "kernel": self._kernel}
        if self._manager is not None:
            chosen = self._manager.continuous_batching_config
            flags |= {
                "num_blocks": chosen.num_blocks,
                "async_batching": chosen.use_async_batching,
                "cuda_graphs": list(chosen.cuda_graph_booleans),
                "scheduler": chosen.scheduler_type,
            }
        return EngineDescription(
            kind="transformers",
            version=transformers.__version__,
            device=str(self._model.device),
            dtype=str(self._model.dtype).removeprefix("torch."),
            flags=flags,
            in_process=True,
        )

    @torch.inference_mode()
    def alone(self, request: TracedRequest) -> tuple[int, ...]:
        """What `generate` says to the prompt alone. Only before the engine starts."""
        prompt = torch.tensor([request.prompt], device=self._model.device)
        lengths = {"min_new_tokens": request.output_tokens, "max_new_tokens": request.output_tokens}
        output = self._model.generate(
            prompt, attention_mask=torch.ones_like(prompt), generation_config=greedy_config(None, None, **lengths)
        )
        return tuple(output[0, prompt.shape[1] :].tolist())

    def start(self) -> None:
        """Make the cache, start the thread, and see it answer."""
        if not self._model.is_backend_compatible():
            # Its layers know no pages, and would mix the keys and values of different requests.
            raise CellFailure("unsupported", f"{type(self._model).__name__} does not attend by Transformers' interface")
        # The library prints a traceback of what is told here in a sentence.
        logging.getLogger(_LIBRARY_LOG).setLevel(logging.CRITICAL)
        settings = self._settings
        if settings.flash_attention == "varlen":
            use_varlen(self._model)
        config = ContinuousBatchingConfig(
            page_size=settings.page_size,
            num_blocks=self._blocks(),
            max_batch_tokens=settings.max_batch_tokens,
            max_requests_per_batch=settings.max_requests,
            allow_block_sharing=settings.shares_prefixes,
            use_cuda_graph=settings.cuda_graphs,
            default_compile_level=settings.compile_level,
            auto_switch_to_flash=settings.flash_attention is True,
        )
        try:
            manager = self._model.init_continuous_batching(greedy_config(_NO_END, None), config)
            self._manager = manager
            manager.warmup()
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:
            raise CellFailure("unsupported", f"continuous batching refuses the model: {reason_of(error)}") from error
        self._watch_preemptions(manager)
        sys.setswitchinterval(_SWITCH_S)
        manager.start()
        self._probe()

    def _blocks(self) -> int:
        if self._settings.num_blocks is not None:
            return self._settings.num_blocks
        try:
            token_b = cache_bytes_per_token(self._model.config, self._model.dtype, 1)
        except ValueError as error:
            raise CellFailure("unsupported", f"cache_gb needs the size of the model's cache: {error}") from error
        return self._settings.blocks(token_b, self._longest)

    def _probe(self) -> None:
        """A request of few tokens: what the library finds out in a forward pass alone, such as values of another size
        than keys, ends its thread."""
        self.submit(TracedRequest(0, None, tuple(range(4)), 2))
        last = None
        while last is None or not last.finished:
            events = self.events(_STEP_S)
            last = events[-1] if events else last
        if last.error is None:
            return
        fatal = self._end()
        if isinstance(fatal, EngineError):
            fatal = CellFailure("unsupported", f"continuous batching fails on the model: {last.error}")
        raise fatal

    def _watch_preemptions(self, manager: "ContinuousBatchingManager") -> None:
        """Count the requests that are put back for lack of cache: the library tells of them in its log alone."""
        scheduler: Any = manager.batch_processor and manager.batch_processor.scheduler
        add = scheduler.add_waiting_request

        def counting(state: Any) -> None:
            # One that comes back has been active before, and carries what it has generated as its prompt.
            self._preempted += bool(state._true_initial_tokens)
            add(state)

        scheduler.add_waiting_request = counting

    def submit(self, request: TracedRequest) -> None:
        """Hand a request over."""
        id = f"request-{self._sent}"
        self._sent += 1
        self._indices[id], self._arrived[id] = request.index, 0
        accepted = self._running().add_request(
            list(request.prompt),
            request_id=id,
            max_new_tokens=request.output_tokens,
            streaming=True,
            record_timestamps=True,
            eos_token_id=_NO_END,
        )
        if accepted is None:
            raise self._end()

    def events(self, timeout_s: float) -> Sequence[TokenEvent]:
        """Tokens with the times at which the generating thread had them."""
        manager = self._running()
        arrivals = manager.output_router.output_queue
        events: list[TokenEvent] = []
        try:
            output = arrivals.get(timeout=timeout_s) if timeout_s > 0 else arrivals.get_nowait()
            while True:
                events += self._events_of(output)
                output = arrivals.get_nowait()
        except queue.Empty:
            pass
        if not events and not manager.is_running():
            raise self._end()
        return events

    def _events_of(self, output: Any) -> list[TokenEvent]:
        """What an output, which holds all tokens so far, has new."""
        id, finished = output.request_id, output.is_finished()
        index, before = self._indices[id], self._arrived[id]
        new = output.generated_tokens[before:]
        self._arrived[id] = before + len(new)
        # A request that was put back has no times of what it had generated before.
        times = (output.timestamps or [])[-len(new) :] if new else []
        events = [TokenEvent(index, time, (token,)) for time, token in zip(times, new, strict=True)]
        if not finished:
            return events
        del self._indices[id], self._arrived[id]
        error = output.error and reason_of(RuntimeError(output.error))
        if events and error is None:
            last = events.pop()
            return [*events, TokenEvent(index, last.time_s, last.tokens, True)]
        return [*events, TokenEvent(index, output.lifespan[1], (), True, error)]

    def usage(self) -> EngineUsage:
        """How full it is, read from another thread while it works: within a step of what it is."""
        processor: Any = self._running().batch_processor
        scheduler = processor.scheduler
        return EngineUsage(
            cache_fraction=1 - processor.cache.compute_free_capacity(),
            running=len(scheduler.active_requests),
            waiting=len(scheduler.waiting_requests),
            preemptions=self._preempted,
        )

    def stop(self) -> None:
        """End the thread, and give the cache's memory back."""
        sys.setswitchinterval(self._switch_s)
        manager, self._manager = self._manager, None
        if manager is None or threading.current_thread() is manager._generation_thread:
            return
        if manager.is_running():
            manager.stop(block=True, timeout=_STOP_S, hard_stop=True)
        manager.destroy()

    def _running(self) -> "ContinuousBatchingManager":
        if self._manager is None:
            raise EngineError("the engine was stopped")
        return self._manager

    def _end(self) -> Exception:
        fatal: Any = self._manager and self._manager.background_thread_status.fatal_error
        if isinstance(fatal, torch.cuda.OutOfMemoryError):
            return fatal
        return EngineError(f"the engine has ended: {reason_of(fatal)}" if fatal else "the engine has ended by itself")
