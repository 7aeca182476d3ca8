"""A training step of the 0.5B and 1.5B decoders: its share of the device's peak, and where its time goes.

    python benchmarks/training_step.py [--variants NAME ...] [--device cuda] [--output training_step.json]

Every variant is the same loop: bfloat16 autocast over float32 weights, micro batches added up, gradients clipped, fused
AdamW. Its time is wall time per optimizer step; the profile that follows says which kernels took it, and which one
attention used. `compiled` compiles layer by layer, so that 28 equal layers are compiled once.

dense       GQA at 1.5B, eager, compiled, compiled in micro batches of twice the size, and with deterministic kernels
            only, at 2,048 and 8,192 tokens
bare        the same shape as a page of plain PyTorch, compiled whole, its loss too: what a careful user writes
nsa, mla    the same backbone with that attention, at 8,192 tokens
relative    the same backbone with a learned bias on the distance, at 8,192 tokens
moe         top 2 of 8 experts at 0.5B beside a dense model with the same active parameters, at 2,048 tokens, eager and
            compiled

The output is written after each variant; one that runs out of memory is recorded, and the next goes on.
"""

import argparse
import contextlib
import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from bare_decoder import BareDecoder
from torch import nn
from variants import Step, kernel_times, listed, measure_variants, synchronize

from effllm.models.costs import parameter_count, training_flops
from effllm.models.decoder import EffConfig, EffForCausalLM
from effllm.telemetry import device_info
from effllm.telemetry.metrics import model_flops_utilization

SHAPES: dict[str, dict[str, int]] = {
    "1.5b": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12},
    "0.5b": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14},
    # For trying the script out where there is no GPU.
    "tiny": {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4},
}
VOCABULARY = {"tiny": 512}
ATTENTION_KERNELS = ("flash", "fmha", "attention", "sdpa", "cudnn_generated")


@dataclass(frozen=True)
class Variant:
    """One measured step: `micro` sequences of `length` tokens at a time, `accumulate` times."""

    shape: str
    length: int
    micro: int
    accumulate: int = 4
    compiled: bool = False
    deterministic: bool = False
    is_bare: bool = False
    settings: dict[str, Any] = field(default_factory=dict)

    def config(self) -> EffConfig:
        return EffConfig(
            vocab_size=VOCABULARY.get(self.shape, 151936),
            max_position_embeddings=self.length,
            **SHAPES[self.shape] | self.settings,
        )


VARIANTS = {
    "dense-2k": Variant("1.5b", 2048, 4),
    "dense-2k-compiled": Variant("1.5b", 2048, 4, compiled=True),
    "dense-8k": Variant("1.5b", 8192, 1),
    "dense-8k-compiled": Variant("1.5b", 8192, 1, compiled=True),
    "dense-2k-compiled-by-two": Variant("1.5b", 2048, 8, 2, compiled=True),
    "dense-8k-compiled-by-two": Variant("1.5b", 8192, 2, 2, compiled=True),
    "bare-2k": Variant("1.5b", 2048, 4, compiled=True, is_bare=True),
    "bare-8k": Variant("1.5b", 8192, 1, compiled=True, is_bare=True),
    "dense-2k-deterministic": Variant("1.5b", 2048, 4, deterministic=True),
    "dense-8k-deterministic": Variant("1.5b", 8192, 1, deterministic=True),
    "nsa-8k": Variant("1.5b", 8192, 1, 1, settings={"attention": "nsa"}),
    "mla-8k": Variant("1.5b", 8192, 1, settings={"attention": "mla"}),
    "relative-8k": Variant("1.5b", 8192, 1, 1, settings={"position": "relative"}),
    "moe-2k": Variant("0.5b", 2048, 4, settings={"feed_forward": "moe"}),
    "dense-of-moe-2k": Variant("0.5b", 2048, 4, settings={"intermediate_size": 2 * 4864}),
    "moe-2k-compiled": Variant("0.5b", 2048, 4, compiled=True, settings={"feed_forward": "moe"}),
    "dense-of-moe-2k-compiled": Variant("0.5b", 2048, 4, compiled=True, settings={"intermediate_size": 2 * 4864}),
}
TINY = {
    f"tiny-{name}": Variant(
        "tiny",
        128,
        2,
        2,
        variant.compiled,
        variant.deterministic,
        variant.is_bare,
        {**variant.settings, "intermediate_size": 96},
    )
    for name, variant in VARIANTS.items()
}
RATIOS = {
    "compiled over eager at 2k": ("dense-2k-compiled", "dense-2k"),
    "compiled over eager at 8k": ("dense-8k-compiled", "dense-8k"),
    "compiled over bare at 2k": ("dense-2k-compiled", "bare-2k"),
    "compiled over bare at 8k": ("dense-8k-compiled", "bare-8k"),
    "compiled by two over bare at 2k": ("dense-2k-compiled-by-two", "bare-2k"),
    "compiled by two over bare at 8k": ("dense-8k-compiled-by-two", "bare-8k"),
    "deterministic over eager at 2k": ("dense-2k-deterministic", "dense-2k"),
    "deterministic over eager at 8k": ("dense-8k-deterministic", "dense-8k"),
    "NSA over dense at 8k": ("nsa-8k", "dense-8k"),
    "MLA over dense at 8k": ("mla-8k", "dense-8k"),
    "relative over rotary positions at 8k": ("relative-8k", "dense-8k"),
    "MoE over dense of the same active parameters": ("moe-2k", "dense-of-moe-2k"),
    "MoE over dense of the same active parameters, compiled": ("moe-2k-compiled", "dense-of-moe-2k-compiled"),
}


def training_step(model: nn.Module, variant: Variant, device: str) -> Step:
    """A function that does one optimizer step on random tokens."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    shape = (variant.accumulate, variant.micro, variant.length)
    batches = torch.randint(variant.config().vocab_size, shape, device=device)
    items = torch.tensor(variant.accumulate * variant.micro * (variant.length - 1), device=device)

    def step() -> None:
        for tokens in batches:
            with torch.autocast(device, torch.bfloat16):
                if variant.is_bare:
                    loss = model(tokens) / variant.accumulate
                else:
                    loss = model(
                        input_ids=tokens, labels=tokens, use_cache=False, skip_logits=True, num_items_in_batch=items
                    ).loss
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure(variant: Variant, device: str, steps: int) -> dict[str, Any]:
    """Time, utilisation, memory and kernels of one variant."""
    config = variant.config()
    count = parameter_count(config)
    flops = variant.accumulate * variant.micro * training_flops(config, variant.length)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with kernels_of(variant):
        with torch.device(device):
            model: nn.Module = BareDecoder(config) if variant.is_bare else EffForCausalLM(config).train()
        if variant.is_bare:
            model.compile()
        elif variant.compiled:
            for layer in model.model.layers:
                layer.compile()
        step = training_step(model, variant, device)
        started = time.perf_counter()
        for _ in range(3):
            step()
        synchronize(device)
        first_s = time.perf_counter() - started
        seconds = []
        for _ in range(steps):
            started = time.perf_counter()
            step()
            synchronize(device)
            seconds.append(time.perf_counter() - started)
        peak = torch.cuda.max_memory_allocated() if device == "cuda" else None
        kernels = profile(step, device)
    name = device_info(device).name
    median_s = statistics.median(seconds)
    return {
        "status": "ok",
        "variant": asdict(variant),
        "parameters": count.total,
        "parameters_active": count.active,
        "seconds_per_step": median_s,
        "all_seconds": seconds,
        "three_first_steps_s": first_s,
        "tokens_per_s": variant.accumulate * variant.micro * variant.length / median_s,
        "flops_per_step": flops,
        "mfu": model_flops_utilization(flops, median_s, name, "bfloat16"),
        "peak_bytes": peak,
        **kernels,
    }


@contextlib.contextmanager
def kernels_of(variant: Variant) -> Iterator[None]:
    """What a variant changes outside its model: deterministic kernels."""
    torch._dynamo.reset()
    if variant.deterministic:
        # Tensors that nobody reads before they are written need not be filled.
        torch.utils.deterministic.fill_uninitialized_memory = False
    torch.use_deterministic_algorithms(variant.deterministic)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def profile(step: Step, device: str) -> dict[str, Any]:
    """The kernels of one step by time, and those that are attention's; shares are of the sum over kernels."""
    times = kernel_times(step, device)
    total_s = sum(seconds for _, seconds, _ in times)
    of_attention = [entry for entry in times if any(word in entry[0].lower() for word in ATTENTION_KERNELS)]
    return {
        "kernels_s": total_s,
        "kernels": listed(times, total_s),
        "attention_kernels": listed(of_attention, total_s),
    }


def ratios(results: dict[str, Any]) -> dict[str, float]:
    """Times per step over times per step of the same number of tokens, where both sides were measured."""
    seconds_per_token = {
        name: 1 / result["tokens_per_s"] for name, result in results.items() if result["status"] == "ok"
    }
    return {
        label: seconds_per_token[ours] / seconds_per_token[reference]
        for label, (ours, reference) in RATIOS.items()
        if ours in seconds_per_token and reference in seconds_per_token
    }


def report(name: str, result: dict[str, Any]) -> None:
    """Print one variant."""
    if result["status"] != "ok":
        print(f"{name:26} {result['status']}: {result['reason']}", flush=True)
        return
    mfu = f"{result['mfu']:.1%}" if result["mfu"] is not None else "-"
    memory = f"{result['peak_bytes'] / 1e9:.1f} GB" if result["peak_bytes"] else "-"
    attention = result["attention_kernels"][0]["name"][:60] if result["attention_kernels"] else "none seen"
    print(
        f"{name:26} {result['seconds_per_step'] * 1e3:9.1f} ms  {result['tokens_per_s']:9.0f} tokens/s  MFU {mfu:>6}  "
        f"peak {memory}  {attention}",
        flush=True,
    )


def main() -> None:
    known = VARIANTS | TINY
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", choices=known, default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=5, help="measured steps of each variant, after three others")
    parser.add_argument("--output", type=Path, help="write all figures as JSON")
    arguments = parser.parse_args()
    # Deterministic products need a fixed workspace, and it must be named before cuBLAS starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

    def one(name: str) -> dict[str, Any]:
        return measure(known[name], arguments.device, arguments.steps)

    measure_variants(arguments.variants, one, report, ratios, arguments.device, arguments.output, {})


if __name__ == "__main__":
    main()
