"""A step of Transformers' continuous batching beside the bare decoding step of the same model at the same batch.

    python benchmarks/serving_engine.py --output FILE.json [--rows 1.5b,bfloat16,64 7b,bfloat16,64,varlen]
        [--until-s 300]

A row is shape, precision, requests at once, and what else there is: `varlen` lets PyTorch's attention over sequences
of different lengths take the place of SDPA under a mask, `graphs` and `nographs` say whether forward passes are CUDA
graphs, `triton` names gptqmodel's kernel. Random weights, built on the device; prompts of 512 tokens, 64 new ones.

For each row: the bare step, by a CUDA graph over a static cache and without one; the engine's steps that only decode
and those that read prompts too, with the time that the host takes to prepare, to launch, to wait and to account for
one; and of both kinds of step a profile of the kernels, by what they belong to. What a step takes beyond its kernels,
the GPU is idle. `--rehearse` takes a small shape, which also runs on a CPU.
"""

import argparse
import gc
import json
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import transformers
from precisions import build
from step_parts import Row, account
from torch.profiler import ProfilerActivity, profile, record_function
from transformers.generation.continuous_batching.cache import PagedAttentionCache
from transformers.integrations import sdpa_attention

from effllm.errors import CellFailure
from effllm.models.costs import cache_bytes, weights_read
from effllm.profiling.graphs import Graphs, StaticSteps
from effllm.serving.engines.continuous import ContinuousEngine
from effllm.serving.engines.transformers import TransformersEngine
from effllm.serving.trace import TracedRequest
from effllm.telemetry import device_info
from effllm.telemetry.peaks import peak_bandwidth_b_per_s

PROMPT_TOKENS, NEW_TOKENS = 512, 64
BATCH_TOKENS, PAGE = 2048, 32
REPLAYS = 20
PROFILED_STEPS = 5
DEFAULT_ROWS = ("1.5b,bfloat16,64", "1.5b,bfloat16,64,varlen", "1.5b-mqa,bfloat16,64", "1.5b-mha,bfloat16,64",
                "7b,bfloat16,64", "1.5b,bfloat16,64,graphs", "1.5b,nf4,64", "1.5b,gptq,64,triton")  # fmt: skip


profiling = False


def under(label: str | None) -> Any:
    """A name in a profile, while there is one: at other times it would cost a few microseconds."""
    return record_function(label) if profiling and label else nullcontext()


class Watch:
    """What the generating thread spends its time on, step by step, and a profile of a few of them when it is asked."""

    def __init__(self, manager: Any, requests: int):
        self.requests = requests
        self.steps: list[Row] = []
        self.wanted: set[str] = set()
        self.profiles: dict[str, tuple[profile, int]] = {}
        self._spent: Counter[str] = Counter()
        self._running: tuple[str, profile, int] | None = None
        self._batch = (0, 0, 0)
        processor = manager.batch_processor
        ios = processor.inputs_and_outputs
        self._time(processor, "prepare_next_batch", "prepare", "part:inputs")
        self._time(processor, "_generation_step", "compute")
        self._time(ios, "retrieve_device_outputs", "wait")
        self._time(ios, "prepare_batch_update", "fetch")
        self._time(processor, "update_batch", "update")
        self._note_batch(ios)
        body = manager._generation_loop_body

        def step(*arguments: Any, **named: Any) -> Any:
            goes_on = body(*arguments, **named)
            # Not where there was nothing to do.
            if self._spent["compute"]:
                self._end_step()
                self._profile()
            else:
                self._spent.clear()
            return goes_on

        manager._generation_loop_body = step

    def _time(self, owner: Any, name: str, kind: str, label: str | None = None) -> None:
        inner = getattr(owner, name)

        def timed(*arguments: Any, **named: Any) -> Any:
            start = time.perf_counter()
            try:
                with under(label):
                    return inner(*arguments, **named)
            finally:
                self._spent[kind] += time.perf_counter() - start

        setattr(owner, name, timed)

    def _note_batch(self, ios: Any) -> None:
        inner = ios.prepare_batch_tensors

        def noted(*arguments: Any, **named: Any) -> Any:
            states = named["requests_in_batch"]
            cached = sum(future.state.position_offset for future in states)
            self._batch = (sum(future.query_length for future in states), len(states), cached)
            return inner(*arguments, **named)

        ios.prepare_batch_tensors = noted

    def _end_step(self) -> None:
        tokens, requests, cached = self._batch
        spent, self._spent = self._spent, Counter()
        kind = "decode" if tokens == requests == self.requests else "mixed" if tokens > BATCH_TOKENS // 2 else "other"
        self.steps.append({
            "end": time.perf_counter(), "kind": kind, "tokens": tokens, "requests": requests, "cached": cached,
            "prepare": spent["prepare"], "launch": spent["compute"] - spent["wait"],
            "wait": spent["wait"] + spent["fetch"], "update": spent["update"] - spent["fetch"],
            "profiled": self._running is not None,
        })  # fmt: skip

    def _profile(self) -> None:
        """Begin or end a profile between two steps: it records the operations of the thread that begins it."""
        global profiling
        kind, requests = self.steps[-1]["kind"], self.steps[-1]["requests"]
        if self._running is not None:
            name, profiler, steps = self._running
            if kind == name and steps + 1 < PROFILED_STEPS:
                self._running = (name, profiler, steps + 1)
                return
            synchronize()
            profiling = False
            profiler.stop()
            self.profiles[name] = (profiler, steps + 1)
            self._running = None
            self.wanted.discard(name)
        elif kind in self.wanted and requests >= self.requests // 2 and self.steps[-2]["kind"] == kind:
            activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
            profiler = profile(activities=activities, acc_events=True)
            synchronize()
            profiler.start()
            profiling = True
            self._running = (kind, profiler, 0)

    def timed(self, kind: str) -> list[Row]:
        """Steps of a kind after another of it, neither of them profiled, with what they took from end to end."""
        pairs = zip(self.steps, self.steps[1:], strict=False)
        return [
            step | {"step": step["end"] - before["end"]}
            for before, step in pairs
            if step["kind"] == before["kind"] == kind and not (step["profiled"] or before["profiled"])
        ]


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def bare(model: Any, prompt: torch.Tensor, device: str) -> Row:
    """The decoding step over a static cache that is full up to the last token, and the prefill, in ms."""
    found: Row = {}
    try:
        graphs = Graphs(model, prompt, NEW_TOKENS, device)
    except CellFailure as failure:
        graphs, found["reason"] = None, failure.reason
    steps = graphs.steps if graphs else StaticSteps(model, prompt, NEW_TOKENS)
    ways: dict[str, tuple[Callable[[], None], Callable[[], None]]] = {"eager": (steps.prefill, steps.step)}
    if graphs:
        ways["graph"] = (graphs.prefill.replay, graphs.step.replay)
    for way, (prefill, step) in ways.items():
        with torch.inference_mode():
            prefill()
            times = [_timed(step) for _ in range(REPLAYS)]
            found |= {f"{way}_ms": 1e3 * statistics.median(times), f"{way}_prefill_ms": 1e3 * _timed(prefill)}
            if way == "graph":
                activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA]
                with profile(activities=activities, acc_events=True) as profiler:
                    for _ in range(PROFILED_STEPS):
                        step()
                    synchronize()
                found["profile"] = account(profiler, PROFILED_STEPS)
    return found


def _timed(work: Callable[[], None]) -> float:
    synchronize()
    start = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - start


@contextmanager
def labelled(model: Any) -> Any:
    """Names in profiles for what has no operation of its own: the cache, heads that are repeated, packed layers."""

    def named(inner: Callable[..., Any], label: str) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            with under(label):
                return inner(*arguments, **options)

        return run

    update, repeat = PagedAttentionCache.update, sdpa_attention.repeat_kv
    PagedAttentionCache.update = named(update, "part:cache")
    sdpa_attention.repeat_kv = named(repeat, "part:heads repeated")
    for layer in model.modules():
        if hasattr(layer, "qweight") or type(layer).__name__ in ("Linear4bit", "Linear8bitLt"):
            layer.forward = named(layer.forward, "part:packed layer")
    try:
        yield
    finally:
        PagedAttentionCache.update, sdpa_attention.repeat_kv = update, repeat


def served(model: Any, requests: int, prompts: list[tuple[int, ...]], options: set[str]) -> Row:
    """The engine's steps with so many requests under way, and a profile of each kind of step."""
    longest = PROMPT_TOKENS + NEW_TOKENS
    blocks = int(1.4 * requests * longest / PAGE) + 8
    graphs = True if "graphs" in options else False if "nographs" in options else None
    settings = TransformersEngine(
        kind="transformers", page_size=PAGE, num_blocks=blocks, max_batch_tokens=BATCH_TOKENS, cuda_graphs=graphs,
        flash_attention="varlen" if "varlen" in options else False,
    )  # fmt: skip
    engine = ContinuousEngine(settings, model, longest)
    start = time.perf_counter()
    engine.start()
    started_s = time.perf_counter() - start
    watch = Watch(engine._manager, requests)
    runner = engine._manager.batch_processor.model_runner
    sample = runner._sample

    def sampled(*arguments: Any) -> None:
        with under("part:sampling"):
            sample(*arguments)

    runner._sample = sampled
    tokens: list[list[int]] = [[] for _ in prompts]
    try:
        rounds: list[float] = []
        # Once to warm up, once for the times, and once for the profiles.
        for number in range(3):
            watch.wanted = {"decode", "mixed"} if number == 2 else set()
            if len(rounds) == 1:
                watch.steps.clear()
            begin = time.perf_counter()
            for index, prompt in enumerate(prompts):
                engine.submit(TracedRequest(index, None, prompt, NEW_TOKENS))
            left = len(prompts)
            while left:
                for event in engine.events(1.0):
                    if len(rounds) == 1:
                        tokens[event.index] += event.tokens
                    left -= event.finished
                    if event.error:
                        raise RuntimeError(event.error)
            rounds.append(time.perf_counter() - begin)
        description = engine.description
    finally:
        engine.stop()
    found: Row = {"flags": description.flags, "started_s": started_s, "round_s": rounds[1], "outputs": tokens}
    for kind in ("decode", "mixed"):
        timed = watch.timed(kind)
        if not timed:
            continue
        found[kind] = {"steps": len(timed)} | {
            name: statistics.median(step[name] for step in timed) for name in ("tokens", "requests", "cached")
        }
        for name in ("step", "prepare", "launch", "wait", "update"):
            found[kind][f"{name}_ms"] = 1e3 * statistics.median(step[name] for step in timed)
        if kind in watch.profiles:
            found[kind]["profile"] = account(*watch.profiles[kind])
    return found


def measure(row: str, rehearse: bool, outputs: Path) -> Row:
    """A row: the bare step, the engine's, and both beside what the memory's bandwidth allows."""
    shape, precision, count, *rest = row.split(",")
    options, requests = set(rest), int(count)
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    model, kind = build(
        "rehearsal" if rehearse else shape, precision, device, "triton" if "triton" in options else "marlin"
    )
    held = sum(each.numel() * each.element_size() for each in {*model.parameters(), *model.buffers()})
    # With the scales of packed layers, which are neither parameters nor buffers.
    held = torch.cuda.memory_allocated() if device != "cpu" else held
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(model.config.vocab_size, (requests, PROMPT_TOKENS), generator=generator)
    name = device_info(device).name
    found: Row = {"row": row, "status": "ok", "device": name, "requests": requests, "weights_bytes": held}
    found["kernel"] = kind.running_kernel(model)
    try:
        found["bare"] = bare(model, drawn.to(device), device)
    except Exception as error:  # the engine is measured all the same
        found["bare"] = {"reason": f"{type(error).__name__}: {error}"[:300]}
    gc.collect()
    if device != "cpu":
        torch.cuda.empty_cache()
    with labelled(model):
        engine = served(model, requests, [tuple(prompt) for prompt in drawn.tolist()], options)
    tokens = engine.pop("outputs")
    found["engine"] = engine
    found |= _against(found, model)
    # Of one shape and precision, attention of either kind should say the same but for rounding.
    kept = outputs / f"{shape}-{precision}-{requests}.json"
    if kept.exists():
        pairs = list(zip(json.loads(kept.read_text()), tokens, strict=True))
        found["identical_outputs"] = sum(one == other for one, other in pairs)
        found["identical_tokens"] = sum(a == b for one, other in pairs for a, b in zip(one, other, strict=True))
    else:
        kept.write_text(json.dumps(tokens))
    return found


def _against(found: Row, model: Any) -> Row:
    """The engine's decoding step over the bare one, what is idle of it, and the least time by bandwidth."""
    decode = found["engine"].get("decode")
    if decode is None:
        return {}
    read_b = weights_read(model.config, found["weights_bytes"], model.dtype)
    read_b += cache_bytes(model.config, 1, model.dtype) * decode["cached"]
    result: Row = {"decode_bytes": read_b}
    if bandwidth := peak_bandwidth_b_per_s(str(found["device"])):
        result["roofline_ms"] = 1e3 * read_b / bandwidth
        result["mbu"] = result["roofline_ms"] / decode["step_ms"]
    bare_ms = found["bare"].get("graph_ms") or found["bare"].get("eager_ms")
    if bare_ms:
        result["over_bare"] = decode["step_ms"] / bare_ms
        if "roofline_ms" in result:
            result["bare_mbu"] = result["roofline_ms"] / bare_ms
    if "profile" in decode:
        result["idle"] = max(0.0, 1 - decode["profile"]["kernels_ms"] / decode["step_ms"])
    return result


def attempt(row: str, rehearse: bool, outputs: Path) -> Row:
    """A row, or why there is none: one that fails ends no other."""
    try:
        return measure(row, rehearse, outputs)
    except Exception as error:
        return {"row": row, "status": "failed", "reason": f"{type(error).__name__}: {error}"[:400]}
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def said(row: Row) -> str:
    if row["status"] != "ok":
        return f"{row['row']}: {row['status']}: {row['reason']}"
    decode, mixed = row["engine"].get("decode", {}), row["engine"].get("mixed", {})
    figures = {
        "bare graph": row["bare"].get("graph_ms"), "eager": row["bare"].get("eager_ms"),
        "engine decodes": decode.get("step_ms"), "kernels": decode.get("profile", {}).get("kernels_ms"),
        "reads prompts": mixed.get("step_ms"), "kernels there": mixed.get("profile", {}).get("kernels_ms"),
        "over bare": row.get("over_bare"), "mbu": row.get("mbu"), "idle": row.get("idle"),
    }  # fmt: skip
    return f"{row['row']}: " + ", ".join(f"{name} {value:.3g}" for name, value in figures.items() if value is not None)


def main() -> None:
    """Take the rows in their order until the time is up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rows", nargs="+", default=list(DEFAULT_ROWS))
    parser.add_argument("--until-s", type=float, default=1e9, help="seconds after which no row is begun")
    parser.add_argument("--rehearse", action="store_true")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    began = time.monotonic()
    outputs = arguments.output.with_suffix(".outputs")
    outputs.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for row in arguments.rows:
        if time.monotonic() - began > arguments.until_s:
            break
        rows.append(attempt(row, arguments.rehearse, outputs))
        print(said(rows[-1]), flush=True)
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        arguments.output.write_text(json.dumps({"versions": versions, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
