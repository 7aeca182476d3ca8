"""The fused kernels of NSA, Relative and RWKV beside dense attention and plain torch, on one GPU in one run.

    python benchmarks/attention_kernels.py [--parts layers favourite decoding rwkv] [--output FILE]

layers     an attention layer of the 1.5B shape, forward and backward, at 2,048 to 65,536 tokens: time and memory
favourite  NSA's selection where every query reads one block more than chance would: time over that of random choices
decoding   prefill and one step with a cache of 8,192 and 32,768 tokens, four layers of the 1.5B shape
rwkv       the linear attention of RWKV-4, 512 tokens of 2,048 channels, by the kernel and by the loop

A step of the whole model is `training_step.py`'s. `--device cpu` tries the script out with small shapes.
"""

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from effllm.models.decoder import EffConfig, EffForCausalLM
from effllm.models.decoder.attention.core import GroupedQueryAttention, Sequence
from effllm.models.decoder.attention.nsa_branches import SparseShape, select_blocks
from effllm.models.decoder.attention.nsa_layer import NativeSparseAttention
from effllm.models.decoder.kernels.choice import choosing
from effllm.models.decoder.positions.layers import rotary_angles
from effllm.telemetry import device_info

SHAPE = {"hidden_size": 1536, "intermediate_size": 8960, "num_attention_heads": 12, "num_hidden_layers": 4}
SMALL = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_hidden_layers": 2}
LAYERS: dict[str, dict[str, Any]] = {
    "GQA": {},
    "NSA, 4 blocks": {"attention": "nsa"},
    "NSA, 16 blocks": {"attention": "nsa", "nsa_selected_blocks": 16},
    "Relative": {"position": "relative"},
}
# What plain torch needs minutes for is not measured beyond.
LONGEST_PLAIN = 8192
PLAIN = {"nsa": "gather", "relative": "chunked"}


class Bench:
    """Device, data type and sizes of one run."""

    def __init__(self, device: str):
        self.device, self.is_small = device, device == "cpu"
        self.dtype = torch.float32 if self.is_small else torch.bfloat16
        self.shape = SMALL if self.is_small else SHAPE
        self.lengths = (256, 512) if self.is_small else (2048, 8192, 32768, 65536)
        self.cached = (128, 256) if self.is_small else (8192, 32768)

    def synchronize(self) -> None:
        if not self.is_small:
            torch.cuda.synchronize()

    def time_ms(self, call: Callable[[], Any], budget_s: float = 1.0) -> float:
        """Median time of a call, after two others."""
        seconds = []
        began = time.perf_counter()
        while len(seconds) < 5 or (time.perf_counter() - began < budget_s and len(seconds) < 22):
            self.synchronize()
            started = time.perf_counter()
            call()
            self.synchronize()
            seconds.append(time.perf_counter() - started)
        return statistics.median(seconds[2:]) * 1e3

    def peak_gb(self, call: Callable[[], Any]) -> float | None:
        """What a call allocates on top of what is there."""
        if self.is_small:
            return None
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 1e9


def layer(bench: Bench, length: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Forward and backward of one attention layer over one sequence."""
    config = EffConfig(**bench.shape, max_position_embeddings=length, **settings)
    kind = NativeSparseAttention if config.attention == "nsa" else GroupedQueryAttention
    torch.manual_seed(0)
    with torch.device(bench.device):
        module = kind(config, 0).to(bench.dtype)
        hidden = torch.randn(1, length, config.hidden_size, dtype=bench.dtype, requires_grad=True)
        positions = torch.arange(length)[None]
    angles = rotary_angles(positions, config.head_dim, 1e6) if config.position == "rope" else None
    sequence, gradient = Sequence(0, positions, angles), torch.randn_like(hidden)
    parameters = [hidden, *module.parameters()]

    def step() -> None:
        torch.autograd.grad(module(hidden, sequence, None), parameters, gradient)

    return {"ms": bench.time_ms(step), "peak_gb": bench.peak_gb(step)}


def layers(bench: Bench) -> dict[str, Any]:
    """Every layer at every length, by the kernels and, where that ends in time, by plain torch."""
    results: dict[str, Any] = {}
    for length in bench.lengths:
        for name, settings in LAYERS.items():
            ways: list[tuple[str, dict[str, str]]] = [(name, {})]
            if settings and length <= LONGEST_PLAIN:
                ways.append((f"{name}, plain", PLAIN))
            for label, wanted in ways:
                with choosing(wanted):
                    row = attempt(partial(layer, bench, length, settings))
                dense = results.get(f"GQA {length}", row)
                row["over GQA"] = row["ms"] / dense["ms"] if "ms" in row and "ms" in dense else None
                results[f"{label} {length}"] = row
                report(f"{label} {length}", row)
    return results


def favourite(bench: Bench) -> dict[str, Any]:
    """Selection with blocks at random, and with one that all queries read beside the first."""
    results: dict[str, Any] = {}
    rule = SparseShape(128, 64, 32, 64, selected_blocks=4, initial_blocks=1, local_blocks=2)
    for length in (8192, 32768):
        shapes = [(1, heads, length, 128) for heads in (12, 2, 2, 12)]
        *states, gradient = (torch.randn(shape, device=bench.device, dtype=bench.dtype) for shape in shapes)
        leaves = [state.requires_grad_() for state in states]
        importance = torch.rand(1, 2, length, length // 64, device=bench.device)
        positions = torch.arange(length, device=bench.device)[None]
        for name, added in (("at random", 0.0), ("one favourite", 1.0)):
            importance[..., 8] += added
            blocks = select_blocks(importance, positions, rule)
            results[f"{name} {length}"] = {"ms": bench.time_ms(partial(_selection_step, leaves, blocks, gradient))}
            report(f"{name} {length}", results[f"{name} {length}"])
        results[f"ratio {length}"] = results[f"one favourite {length}"]["ms"] / results[f"at random {length}"]["ms"]
    return results


def _selection_step(leaves: list[torch.Tensor], blocks: torch.Tensor, gradient: torch.Tensor) -> None:
    from effllm.models.decoder.kernels.selection import SelectedAttention

    torch.autograd.grad(SelectedAttention.apply(*leaves, blocks, 64, 128**-0.5), leaves, gradient)


@torch.no_grad()
def decoding(bench: Bench) -> dict[str, Any]:
    """Prefill without and a step with a cache."""
    results: dict[str, Any] = {}
    for cached in bench.cached:
        for name in ("GQA", "NSA, 4 blocks"):
            config = EffConfig(**bench.shape, vocab_size=512, max_position_embeddings=cached + 64, **LAYERS[name])
            with torch.device(bench.device):
                model = EffForCausalLM(config).to(bench.dtype).eval()
                tokens = torch.randint(512, (1, cached))
            prefill = bench.time_ms(partial(model, tokens, use_cache=True, logits_to_keep=1))
            cache = model(tokens, use_cache=True, logits_to_keep=1).past_key_values

            step = partial(model, tokens[:, :1], past_key_values=cache, use_cache=True)
            row = {"prefill_ms": prefill, "step_ms": bench.time_ms(step)}
            results[f"{name} {cached}"] = row
            report(f"{name} {cached}", row)
    return results


def rwkv(bench: Bench) -> dict[str, Any]:
    """Forward and backward of the linear attention."""
    from transformers.models.rwkv.modeling_rwkv import rwkv_linear_attention_cpu

    from effllm.models.recurrent_kernels import _linear_attention

    results: dict[str, Any] = {}
    channels = 2048
    for name, attend, length in (
        ("loop", rwkv_linear_attention_cpu, 512),
        ("fla", _linear_attention, 512),
        ("fla", _linear_attention, 8192),
    ):
        leaves = [torch.randn(channels, device=bench.device, requires_grad=True) for _ in range(2)]
        shape = (1, length, channels)
        leaves += [torch.randn(shape, device=bench.device, requires_grad=True) for _ in range(2)]
        gradient = torch.randn(shape, device=bench.device)

        def step(attend: Callable = attend, leaves: list = leaves, gradient: torch.Tensor = gradient) -> None:
            torch.autograd.grad(attend(*leaves)[0], leaves, gradient)

        results[f"{name} {length}"] = {"ms": bench.time_ms(step)}
        report(f"{name} {length}", results[f"{name} {length}"])
    return results


def attempt(call: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A measurement, or why it does not fit."""
    try:
        return call()
    except torch.OutOfMemoryError as error:
        return {"status": "oom", "reason": str(error).splitlines()[0]}
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def report(name: str, row: dict[str, Any]) -> None:
    figures = (f"{key} {value:.3f}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items())
    print(f"{name:32} " + "  ".join(figures), flush=True)


PARTS = {"layers": layers, "favourite": favourite, "decoding": decoding, "rwkv": rwkv}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, help="write all figures as JSON")
    arguments = parser.parse_args()
    device = device_info(arguments.device).model_dump(exclude_unset=True)
    results: dict[str, Any] = {"device": device, "torch": torch.__version__}
    for part in arguments.parts:
        results[part] = PARTS[part](Bench(arguments.device))
        if arguments.output:
            arguments.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
