"""Our decoders against their references, side by side in one process.

    python benchmarks/models.py [--parts step nsa moe mla] [--device cpu] [--repeats 7] [--output models.json]

step  training step of the GQA decoder against Transformers' Qwen2 of the same shape (target: at most 1.0x its time)
nsa   forward and backward of one NSA layer against one dense GQA layer over the sequence length: the exponent of NSA's
      time (target: under 1.3) and the shortest measured length at which it is faster
moe   training step with the top 2 of 8 experts against a dense decoder with the same active parameters (at most 1.4x)
mla   a cached decoding step of MLA against MHA: bytes of cache per token, held and read, and time

Sides take turns, and a ratio is the median over the rounds of the ratio within a round. Peak memory is what one step
adds to the process (to the device's allocator on CUDA) at its highest.
"""

import argparse
import ctypes
import gc
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, Qwen2Config

from effllm.models.costs import cache_bytes_per_token, parameter_count
from effllm.models.decoder import EffConfig, EffForCausalLM
from effllm.models.decoder.attention.core import GroupedQueryAttention, Sequence
from effllm.models.decoder.attention.nsa_layer import NativeSparseAttention
from effllm.models.decoder.positions.layers import rotary_angles

LENGTHS = (1024, 2048, 4096, 8192, 16384)
Step = Callable[[], object]


def measure(sides: dict[str, Step], repeats: int, device: str) -> dict[str, dict]:
    """Times in seconds of each side, one per round, and the peak memory of a step in bytes."""
    peaks = {name: _peak_bytes(step, device) for name, step in sides.items()}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for round_ in range(repeats):
        order = list(sides) if round_ % 2 else list(reversed(sides))
        for name in order:
            _synchronize(device)
            started = time.perf_counter()
            sides[name]()
            _synchronize(device)
            times[name].append(time.perf_counter() - started)
    return {
        name: {"seconds": statistics.median(times[name]), "all_seconds": times[name], "peak_bytes": peaks[name]}
        for name in sides
    }


def ratio(results: dict[str, dict], ours: str, reference: str) -> float:
    """Median over the rounds of ours / reference."""
    pairs = zip(results[ours]["all_seconds"], results[reference]["all_seconds"], strict=True)
    return statistics.median(a / b for a, b in pairs)


def _placed(arguments: argparse.Namespace) -> dict:
    """Device and type: float32 on the CPU, bfloat16 on CUDA."""
    return {"device": arguments.device, "dtype": torch.bfloat16 if arguments.device == "cuda" else torch.float32}


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _peak_bytes(step: Step, device: str) -> int:
    """The second step's highest memory above what is held before it; the first one warms up."""
    step()
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    # Memory that the allocator holds free would hide what the step takes; then the kernel's high-water mark restarts.
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident_bytes("VmRSS")
    step()
    return max(0, _resident_bytes("VmHWM") - before)


def _resident_bytes(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}")


def training_step(model: torch.nn.Module, tokens: torch.Tensor) -> Step:
    """Forward, loss, backward and AdamW of a causal language model on `tokens`."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def compare_step(arguments: argparse.Namespace) -> dict:
    """GQA decoder and Qwen2 of one shape."""
    shape = {
        "vocab_size": 4096,
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    }
    tokens = torch.randint(0, 4096, (4, 512), device=arguments.device)
    ours = EffForCausalLM(EffConfig(**shape)).to(**_placed(arguments)).train()
    theirs = AutoModelForCausalLM.from_config(Qwen2Config(**shape)).to(**_placed(arguments)).train()
    sides = {"effllm gqa": training_step(ours, tokens), "transformers qwen2": training_step(theirs, tokens)}
    results = measure(sides, arguments.repeats, arguments.device)
    return {"rows": results, "ratio": ratio(results, "effllm gqa", "transformers qwen2"), "target": 1.0}


def compare_nsa(arguments: argparse.Namespace) -> dict:
    """One kv head with its seven query heads of 64, as in Qwen2.5-0.5B; NSA's lengths as in the paper."""
    shape = {
        "hidden_size": 448,
        "num_attention_heads": 7,
        "num_key_value_heads": 1,
        "num_hidden_layers": 1,
        "vocab_size": 2,
    }
    sparse = NativeSparseAttention(EffConfig(**shape, attention="nsa"), 0).to(**_placed(arguments))
    dense = GroupedQueryAttention(EffConfig(**shape, attention="gqa"), 0).to(**_placed(arguments))

    def step(layer: torch.nn.Module, hidden: torch.Tensor, sequence: Sequence) -> None:
        layer(hidden, sequence, None).square().mean().backward()
        layer.zero_grad()

    rows = {}
    for length in arguments.lengths:
        hidden = torch.randn(1, length, 448, requires_grad=True, **_placed(arguments))
        positions = torch.arange(length, device=arguments.device)[None]
        sequence = Sequence(0, positions, rotary_angles(positions, 64, 1e6))
        sides = {
            "nsa": lambda h=hidden, s=sequence: step(sparse, h, s),
            "dense": lambda h=hidden, s=sequence: step(dense, h, s),
        }
        # The long ones take seconds, and vary less.
        results = measure(sides, max(1, min(arguments.repeats, 8192 // length)), arguments.device)
        rows |= {f"{name} T={length}": row for name, row in results.items()}
    times = {name: [rows[f"{name} T={t}"]["seconds"] for t in arguments.lengths] for name in ("nsa", "dense")}
    pairs = zip(arguments.lengths, times["nsa"], times["dense"], strict=True)
    faster = [length for length, nsa, full in pairs if nsa < full]
    return {
        "rows": rows,
        "exponent": _exponent(arguments.lengths, times["nsa"]),
        "dense_exponent": _exponent(arguments.lengths, times["dense"]),
        "faster_from_length": min(faster) if faster else None,
        "target": 1.3,
    }


def _exponent(lengths: tuple[int, ...], seconds: list[float]) -> float:
    """Least-squares slope of log time over log length."""
    x, y = [math.log(n) for n in lengths], [math.log(s) for s in seconds]
    centre_x, centre_y = statistics.mean(x), statistics.mean(y)
    spread = sum((a - centre_x) ** 2 for a in x)
    return sum((a - centre_x) * (b - centre_y) for a, b in zip(x, y, strict=True)) / spread


def compare_moe(arguments: argparse.Namespace) -> dict:
    """Two experts of width 512 out of eight, and a dense layer of width 1,024."""
    shape = {
        "vocab_size": 4096,
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
    }
    tokens = torch.randint(0, 4096, (4, 512), device=arguments.device)
    configs = {
        "moe top-2 of 8": EffConfig(**shape, feed_forward="moe", moe_intermediate_size=512),
        "dense": EffConfig(**shape),
    }
    models = {name: EffForCausalLM(config).to(**_placed(arguments)).train() for name, config in configs.items()}
    sides = {name: training_step(model, tokens) for name, model in models.items()}
    results = measure(sides, arguments.repeats, arguments.device)
    for name, config in configs.items():
        count = parameter_count(config)
        results[name] |= {"parameters": count.total, "active_parameters": count.active}
    return {"rows": results, "ratio": ratio(results, "moe top-2 of 8", "dense"), "target": 1.4}


class _CacheReads(TorchDispatchMode):
    """Bytes of cached states that enter products and fused attention: inputs of `context` rows of a cache's width."""

    def __init__(self, context: int, widths: set[int]):
        super().__init__()
        self.context, self.widths, self.bytes = context, widths, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(word in str(func) for word in ("bmm", "mm", "attention")):
            for value in args:
                if isinstance(value, torch.Tensor) and self.context in value.shape and value.dim() >= 3:
                    others = [size for size in value.shape[-2:] if size != self.context]
                    self.bytes += value.nbytes if others and others[0] in self.widths else 0
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def compare_mla(arguments: argparse.Namespace) -> dict:
    """One decoding step over 4,095 cached tokens with 8 heads of 128, two layers, batch 1."""
    context = 4096
    shape = {
        "vocab_size": 256,
        "hidden_size": 1024,
        "intermediate_size": 1024,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
    }
    sides, figures = {}, {}
    for attention in ("mla", "mha"):
        config = EffConfig(**shape, attention=attention)
        model = EffForCausalLM(config).to(**_placed(arguments)).eval()
        prompt = torch.randint(0, 256, (1, context - 1), device=arguments.device)
        cache = model(prompt, logits_to_keep=1).past_key_values
        held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
        token = torch.zeros(1, 1, dtype=torch.long, device=arguments.device)

        def step(model=model, cache=cache, token=token) -> None:
            model(token, past_key_values=cache)
            cache.crop(-1)

        widths = {config.kv_lora_rank, config.qk_rope_head_dim} if attention == "mla" else {config.head_dim}
        with _CacheReads(context, widths) as reads:
            step()
        figures[attention] = {
            "cache_bytes_per_token": held / (context - 1),
            "formula_bytes_per_token": cache_bytes_per_token(config, model.dtype, context),
            "read_bytes_per_cached_token": reads.bytes / context,
        }
        sides[attention] = step
    results = measure(sides, 4 * arguments.repeats, arguments.device)
    for name, values in figures.items():
        results[name] |= values
    held = [figures[name]["cache_bytes_per_token"] for name in ("mla", "mha")]
    return {"rows": results, "ratio": ratio(results, "mla", "mha"), "cache_ratio": held[0] / held[1]}


PARTS = {"step": compare_step, "nsa": compare_nsa, "moe": compare_moe, "mla": compare_mla}


def report(name: str, result: dict) -> None:
    """Print one part, a line per measurement."""
    print(f"{name}:")
    for row, values in result["rows"].items():
        extra = "".join(f"  {key} {value:,.0f}" for key, value in values.items() if key not in _COLUMNS)
        print(f"  {row:<22}{values['seconds'] * 1e3:10.1f} ms  peak {values['peak_bytes'] / 1e6:8.1f} MB{extra}")
    for key, value in result.items():
        if key != "rows":
            print(f"  {key}: {value if value is None else round(value, 3)}")


_COLUMNS = ("seconds", "all_seconds", "peak_bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, help="threads of torch on the CPU")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="sequence lengths of part nsa")
    parser.add_argument("--output", type=Path, help="write all figures as JSON")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    results = {"torch": torch.__version__, "device": arguments.device, "threads": torch.get_num_threads()}
    for name in arguments.parts:
        results[name] = PARTS[name](arguments)
        report(name, results[name])
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
