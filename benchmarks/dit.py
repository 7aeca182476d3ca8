"""A training step of diffusion transformers: their attention variants and a mixture of experts, beside plain PyTorch.

    python benchmarks/dit.py [--shape XL/2 L/8 B/4] [--variants NAME ...] [--device cuda] [--output dit.json]

Random latents of 4 x 32 x 32, DDPM with learned sigma, bfloat16 autocast over float32 weights, gradients clipped, fused
AdamW, one batch a step: the same for every variant of a shape. Beside each variant the shape with multi-head attention
is trained as a page of plain PyTorch, compiled where the variant is: a step of the one, then a step of the other, so
that what else the host does slows both. `-compiled` compiles layer by layer. Time is wall time a step, the median.
With `--kernels`, `kernels_s` is what the device works in one more step: where it is less, the host takes the time.

The output is written after each variant, and what it holds already is not measured again; a variant that runs out of
memory is recorded, and the next goes on. About six seconds a variant on an H100.
"""

import argparse
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from bare_dit import BareDiT
from torch import nn
from variants import Step, kernel_times, listed, measure_variants, synchronize

from effllm.diffusion.chain import DdpmObjective
from effllm.diffusion.settings import Ddpm
from effllm.models.dit import DiT, DiTConfig, costs
from effllm.telemetry import device_info
from effllm.telemetry.metrics import model_flops_utilization

# Configuration, and images a step.
SHAPES: dict[str, tuple[dict[str, Any], int]] = {
    "XL/2": ({"hidden_size": 1152, "num_hidden_layers": 28, "num_attention_heads": 16, "patch_size": 2}, 32),
    "L/8": ({"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "patch_size": 8}, 256),
    "B/4": ({"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "patch_size": 4}, 256),
    # For trying the script out where there is no GPU.
    "tiny": ({"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "patch_size": 4}, 4),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "mha": {},
    "mha-compiled": {},
    "mqa": {"attention": "mqa"},
    "gqa": {"attention": "gqa"},
    "mla": {"attention": "mla"},
    "nsa": {"attention": "nsa"},
    "moe": {"feed_forward": "moe"},
}


def training_step(model: nn.Module, shape: str, is_compiled: bool, device: str) -> Step:
    """A function that does one optimizer step on random latents."""
    keys, batch = SHAPES[shape]
    config = DiTConfig(**keys)
    with torch.device(device):
        images, noise = torch.randn(2, batch, config.channels, config.image_size, config.image_size)
        times, labels = torch.randint(1000, (batch,)), torch.randint(config.classes, (batch,))
    if is_compiled:
        for layer in model.layers:
            layer.compile()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0, fused=True)
    objective = DdpmObjective(Ddpm(kind="ddpm"), learned_sigma=True)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16):
            if isinstance(model, BareDiT):
                output = model(objective.noised(images, noise, times), times, labels)
                loss = objective.losses(output.float(), images, noise, times).mean()
            else:
                loss = model(images, times, labels, noise=noise, objective=objective)["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure(shape: str, variant: str, device: str, rounds: int, with_kernels: bool) -> dict[str, Any]:
    """Time, utilisation and memory of one variant, and the time of plain PyTorch beside it."""
    keys, batch = SHAPES[shape]
    config = DiTConfig(**keys, **VARIANTS[variant])
    count, flops = costs.parameter_count(config), batch * costs.training_flops(config)
    is_compiled = variant.endswith("-compiled")
    torch._dynamo.reset()
    steps, first, peaks = {}, {}, {}
    # The variant before the other is there, so that its memory is its own.
    for name, kind in (("ours", DiT), ("bare", BareDiT)):
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        with torch.device(device):
            model = kind(config).train()
        steps[name] = training_step(model, shape, is_compiled, device)
        started = time.perf_counter()
        for _ in range(3):
            steps[name]()
        synchronize(device)
        first[name] = time.perf_counter() - started
        peaks[name] = torch.cuda.max_memory_allocated() if device == "cuda" else None
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds):
        for name in sorted(steps, reverse=bool(number % 2)):
            started = time.perf_counter()
            steps[name]()
            synchronize(device)
            seconds[name].append(time.perf_counter() - started)
    median_s = {name: statistics.median(found) for name, found in seconds.items()}
    kernels = {name: kernel_times(step, device) if with_kernels else [] for name, step in steps.items()}
    kernels_s = {name: sum(taken for _, taken, _ in found) or None for name, found in kernels.items()}
    name = device_info(device).name
    return {
        "status": "ok",
        "images_per_step": batch,
        "parameters": count.total,
        "parameters_active": count.active,
        "seconds_per_step": median_s["ours"],
        "all_seconds": seconds["ours"],
        "kernels_s": kernels_s["ours"],
        "kernels": listed(kernels["ours"], kernels_s["ours"] or 1),
        "three_first_steps_s": first["ours"],
        "images_per_s": batch / median_s["ours"],
        "flops_per_step": flops,
        "mfu": model_flops_utilization(flops, median_s["ours"], name, "bfloat16") if name else None,
        "peak_bytes": peaks["ours"],
        "bare_seconds_per_step": median_s["bare"],
        "bare_all_seconds": seconds["bare"],
        "bare_kernels_s": kernels_s["bare"],
    }


def ratios(results: dict[str, Any]) -> dict[str, float]:
    """Time a step over that of plain PyTorch beside it."""
    return {
        name: result["seconds_per_step"] / result["bare_seconds_per_step"]
        for name, result in results.items()
        if result["status"] == "ok"
    }


def report(name: str, result: dict[str, Any]) -> None:
    """Print one variant."""
    if result["status"] != "ok":
        print(f"{name:20} {result['status']}: {result['reason']}", flush=True)
        return
    mfu = f"{result['mfu']:.1%}" if result["mfu"] is not None else "-"
    memory = f"{result['peak_bytes'] / 1e9:.1f} GB" if result["peak_bytes"] else "-"
    ours, bare = (f"{result[key] * 1e3:.1f}" if result[key] else "-" for key in ("kernels_s", "bare_kernels_s"))
    print(
        f"{name:20} {result['seconds_per_step'] * 1e3:9.1f} ms (kernels {ours}), "
        f"plain {result['bare_seconds_per_step'] * 1e3:.1f} (kernels {bare})  "
        f"MFU {mfu:>6}  peak {memory}  first {result['three_first_steps_s']:.1f} s",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=["XL/2", "L/8", "B/4"], metavar="NAME")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=10, help="measured steps of each variant, after three others")
    parser.add_argument("--kernels", action="store_true", help="profile a step too, which takes longer than the others")
    parser.add_argument("--budget-s", type=float, default=math.inf, help="begin no variant after so many seconds")
    parser.add_argument("--output", type=Path, help="write all figures as JSON, and go on from what it holds")
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    if arguments.output and arguments.output.exists():
        results = json.loads(arguments.output.read_text())["variants"]
    names = (f"{shape} {variant}" for variant in arguments.variants for shape in arguments.shape)

    def one(name: str) -> dict[str, Any]:
        return measure(*name.split(" "), arguments.device, arguments.rounds, arguments.kernels)

    measure_variants(
        names, one, report, ratios, arguments.device, arguments.output, results, budget_s=arguments.budget_s
    )


if __name__ == "__main__":
    main()
