"""A training step of diffusion transformers: their attention variants and a mixture of experts, beside plain PyTorch.

    python benchmarks/dit.py [--shape XL/2 L/8 B/4] [--variants NAME ...] [--device cuda] [--output dit.json]

Random latents of 4 x 32 x 32, DDPM with learned sigma, bfloat16 autocast over float32 weights, gradients clipped, fused
AdamW, one batch a step: the same for every variant of a shape. `bare` is the shape with multi-head attention as a page
of plain PyTorch, in the same process; `-compiled` compiles layer by layer. Time is wall time a step.

The output is written after each variant, and what it holds already is not measured again; a variant that runs out of
memory is recorded, and the next goes on. About ten seconds a variant on an H100.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from bare_dit import BareDiT
from torch import nn
from variants import measure_variants

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
    "bare": {},
    "mha": {},
    "mqa": {"attention": "mqa"},
    "gqa": {"attention": "gqa"},
    "mla": {"attention": "mla"},
    "nsa": {"attention": "nsa"},
    "moe": {"feed_forward": "moe"},
    "bare-compiled": {},
    "mha-compiled": {},
}


def measure(shape: str, variant: str, device: str, steps: int) -> dict[str, Any]:
    """Time, utilisation and memory of one variant."""
    keys, batch = SHAPES[shape]
    config = DiTConfig(**keys, **VARIANTS[variant])
    count = costs.parameter_count(config)
    flops = batch * costs.training_flops(config)
    torch._dynamo.reset()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    is_bare = variant.startswith("bare")
    with torch.device(device):
        model: nn.Module = BareDiT(config) if is_bare else DiT(config).train()
        images, noise = torch.randn(2, batch, config.channels, config.image_size, config.image_size)
        times, labels = torch.randint(1000, (batch,)), torch.randint(config.classes, (batch,))
    if variant.endswith("-compiled"):
        for layer in model.layers:
            layer.compile()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0, fused=True)
    objective = DdpmObjective(Ddpm(kind="ddpm"), learned_sigma=True)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16):
            if is_bare:
                output = model(objective.noised(images, noise, times), times, labels)
                loss = objective.losses(output.float(), images, noise, times).mean()
            else:
                loss = model(images, times, labels, noise=noise, objective=objective)["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    started = time.perf_counter()
    for _ in range(3):
        step()
    _synchronize(device)
    first_s = time.perf_counter() - started
    seconds = []
    for _ in range(steps):
        started = time.perf_counter()
        step()
        _synchronize(device)
        seconds.append(time.perf_counter() - started)
    median_s = statistics.median(seconds)
    name = device_info(device).name
    return {
        "status": "ok",
        "images_per_step": batch,
        "parameters": sum(weight.numel() for weight in model.parameters()) if is_bare else count.total,
        "parameters_active": count.active,
        "seconds_per_step": median_s,
        "all_seconds": seconds,
        "three_first_steps_s": first_s,
        "images_per_s": batch / median_s,
        "flops_per_step": flops,
        "mfu": model_flops_utilization(flops, median_s, name, "bfloat16") if name else None,
        "peak_bytes": torch.cuda.max_memory_allocated() if device == "cuda" else None,
    }


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def ratios(results: dict[str, Any]) -> dict[str, float]:
    """Time a step over that of plain PyTorch, compiled over compiled, where both were measured."""
    seconds = {name: result["seconds_per_step"] for name, result in results.items() if result["status"] == "ok"}
    found = {}
    for name in seconds:
        shape, _, variant = name.partition(" ")
        against = f"{shape} bare-compiled" if variant.endswith("-compiled") else f"{shape} bare"
        if name != against and against in seconds:
            found[f"{name} over {against}"] = seconds[name] / seconds[against]
    return found


def report(name: str, result: dict[str, Any]) -> None:
    """Print one variant."""
    if result["status"] != "ok":
        print(f"{name:20} {result['status']}: {result['reason']}", flush=True)
        return
    mfu = f"{result['mfu']:.1%}" if result["mfu"] is not None else "-"
    memory = f"{result['peak_bytes'] / 1e9:.1f} GB" if result["peak_bytes"] else "-"
    print(
        f"{name:20} {result['seconds_per_step'] * 1e3:9.1f} ms  {result['images_per_s']:9.1f} images/s  "
        f"MFU {mfu:>6}  peak {memory}  first {result['three_first_steps_s']:.1f} s",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=["XL/2", "L/8", "B/4"], metavar="NAME")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=10, help="measured steps of each variant, after three others")
    parser.add_argument("--output", type=Path, help="write all figures as JSON, and go on from what it holds")
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    if arguments.output and arguments.output.exists():
        results = json.loads(arguments.output.read_text())["variants"]
    names = (f"{shape} {variant}" for shape in arguments.shape for variant in arguments.variants)

    def one(name: str) -> dict[str, Any]:
        return measure(*name.split(" "), arguments.device, arguments.steps)

    measure_variants(names, one, report, ratios, arguments.device, arguments.output, results)


if __name__ == "__main__":
    main()
