"""Fine-tuning the shapes of Stable Diffusion 3.5 Medium and Wan 2.1 1.3B, beside a loop as in diffusers' examples.

    python benchmarks/image_models.py [--shapes NAME ...] [--methods NAME ...] [--budget-s 180] [--output figures.json]

Random weights; random latents of images of 1,024 pixels, and of clips of 17 frames of 832 x 480. `stage` is what the
stage `tune` trains with, the Trainer and its telemetry, on encodings as artifacts have them. `loop` is the same
transformer with peft's layers: latents and texts that lie on the device, noise that is drawn there, autocast to
bfloat16, clipping, fused AdamW. Both take one sample a pass and recompute nothing; what is fixed is in bfloat16, what
is trained in float32. Time is wall time a step.

The output is written after each variant, and what it holds already is not measured again. A variant that fails is
recorded, and the next goes on; none begins once the budget is used up. Ten to thirty seconds a variant on an H100.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from peft import LoHaConfig, LoraConfig
from variants import Results, measure_variants

from effllm.data.captions.store import SPLITS
from effllm.data.encodings.store import STORED, EncodedSample, latents_path, text_path, write_samples
from effllm.models.generators import FAMILIES
from effllm.results.data import EncodingsSummary
from effllm.results.telemetry import TelemetrySummary
from effllm.results.training import Efficiency
from effllm.runtime.artifact import Artifact, Manifest, write_text
from effllm.runtime.stage import Job
from effllm.telemetry import Telemetry
from effllm.training.flow_transformer import FlowTransformer
from effllm.training.run import SAMPLE_PERIOD_S, run_rank
from effllm.training.step_timing import WARMUP_STEPS, WINDOW
from effllm.training.tune import Tuning

SAMPLES = 8
RANK = 16
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
MATCHED = {"match_parameters": {"rank": RANK, "target_modules": ATTENTION}, "target_modules": ATTENTION}
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"kind": "lora", "rank": RANK, "alpha": RANK, "target_modules": ATTENTION},
    "full": {"kind": "full"},
    "loha": {"kind": "loha", **MATCHED},
    "lokr": {"kind": "lokr", "factor": 4, **MATCHED},
    "glora": {"kind": "glora", **MATCHED},
}
# What the loop has of them: LoHa of half the rank has as many parameters.
ADAPTERS = {
    "lora": LoraConfig(r=RANK, lora_alpha=RANK, target_modules=ATTENTION),
    "loha": LoHaConfig(r=RANK // 2, alpha=RANK // 2, target_modules=ATTENTION),
}


@dataclass(frozen=True)
class Shape:
    """A transformer of a family, and what it is trained on: latents, and texts by argument; samples a step."""

    family: str
    config: dict[str, Any]
    latents: tuple[int, ...]
    texts: dict[str, tuple[int, ...]]
    per_step: int

    def transformer(self, device: str, dtype: torch.dtype) -> Any:
        """With random weights; what diffusers keeps in float32 when it loads such a model is so."""
        with torch.device(device):
            made = getattr(diffusers, FAMILIES[self.family].transformer)(**self.config)
        kept = set(made._keep_in_fp32_modules or ())
        for name, parameter in made.named_parameters():
            if not kept & set(name.split(".")):
                parameter.data = parameter.data.to(dtype)
        return made.requires_grad_(False)


SD3 = {"patch_size": 2, "qk_norm": "rms_norm"}
WAN = {"patch_size": (1, 2, 2), "cross_attn_norm": True, "qk_norm": "rms_norm_across_heads"}
SHAPES = {
    "sd3.5-medium": Shape(
        "sd3",
        SD3
        | {
            "sample_size": 128,
            "in_channels": 16,
            "out_channels": 16,
            "num_layers": 24,
            "attention_head_dim": 64,
            "num_attention_heads": 24,
            "joint_attention_dim": 4096,
            "caption_projection_dim": 1536,
            "pooled_projection_dim": 2048,
            "pos_embed_max_size": 384,
            "dual_attention_layers": tuple(range(13)),
        },
        (16, 128, 128),
        {"encoder_hidden_states": (333, 4096), "pooled_projections": (2048,)},
        4,
    ),
    "wan-1.3b": Shape(
        "wan",
        WAN
        | {
            "in_channels": 16,
            "out_channels": 16,
            "num_layers": 30,
            "attention_head_dim": 128,
            "num_attention_heads": 12,
            "text_dim": 4096,
            "freq_dim": 256,
            "ffn_dim": 8960,
            "rope_max_seq_len": 1024,
        },
        (16, 5, 60, 104),
        {"encoder_hidden_states": (512, 4096)},
        2,
    ),
    # For trying the script out where there is no GPU.
    "tiny": Shape(
        "sd3",
        SD3
        | {
            "sample_size": 16,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 3,
            "attention_head_dim": 16,
            "num_attention_heads": 4,
            "joint_attention_dim": 64,
            "caption_projection_dim": 64,
            "pooled_projection_dim": 64,
            "pos_embed_max_size": 24,
            "dual_attention_layers": (0,),
        },
        (4, 8, 8),
        {"encoder_hidden_states": (8, 64), "pooled_projections": (64,)},
        4,
    ),
    "tiny-clips": Shape(
        "wan",
        WAN
        | {
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 3,
            "attention_head_dim": 16,
            "num_attention_heads": 4,
            "text_dim": 32,
            "freq_dim": 64,
            "ffn_dim": 128,
            "rope_max_seq_len": 64,
        },
        (4, 2, 8, 8),
        {"encoder_hidden_states": (8, 32)},
        2,
    ),
}


class RandomTuning(Tuning):
    """The stage's training, of random weights that were made where they are trained."""

    def __init__(self, job: Job, shape: Shape):
        super().__init__(job)
        self.shape = shape

    def load_base(self) -> FlowTransformer:
        dtype = torch.float32 if self.run.trains_whole_model else torch.bfloat16
        return FlowTransformer(self.shape.transformer(self.device, dtype), self.family)


def write_encodings(shape: Shape, directory: Path) -> None:
    """Encodings of random numbers, as the stage `encode` leaves them."""
    drawn = np.random.default_rng(0)
    directory.mkdir(parents=True)
    values = int(np.prod(shape.latents))
    for split in SPLITS:
        drawn.standard_normal((SAMPLES, values), np.float32).astype(STORED).tofile(latents_path(directory, split))
        samples = [
            EncodedSample(str(number), str(number), shape.latents, number * values, number + 1)
            for number in range(SAMPLES)
        ]
        write_samples(directory, split, samples)
    for argument, size in shape.texts.items():
        drawn.standard_normal((SAMPLES + 1, *size), np.float32).astype(STORED).tofile(text_path(directory, argument))
    summary = EncodingsSummary(
        splits=dict.fromkeys(SPLITS, SAMPLES),
        texts=SAMPLES + 1,
        text_shapes={argument: list(size) for argument, size in shape.texts.items()},
        family=shape.family,
    )
    write_text(directory / summary.FILE, summary.to_json())


def of_stage(shape: Shape, method: str, device: str, steps: int, root: Path) -> dict[str, Any]:
    """A step as the stage takes it."""
    if not (encodings := root / shape.family).exists():
        write_encodings(shape, encodings)
    run = {
        "method": METHODS[method],
        "learning_rate": 1e-4,
        "micro_batch_size": 1,
        "parallel": {},
        "samples_per_step": shape.per_step,
        "max_steps": WARMUP_STEPS + steps,
        "deterministic": False,
        "checkpoint_every_steps": None,
    }
    inputs = {
        name: Artifact(directory, Manifest("bench", name, {}, "ok", None, {}, {}), "")
        for name, directory in (("generator", root), ("encodings", encodings))
    }
    with tempfile.TemporaryDirectory(dir=root) as place:
        output, scratch = Path(place) / "output", Path(place) / "scratch"
        records = output / "records"
        records.mkdir(parents=True)
        scratch.mkdir()
        job = Job("tune", "", f"bench.bench.{method}", {"config": run}, inputs, {}, output, records, scratch)
        setup = RandomTuning(job, shape).setup()
        trained = [parameter.numel() for parameter in setup.model.parameters() if parameter.requires_grad]
        run_rank(job, setup)
        efficiency = Efficiency.read(output)
    assert efficiency.telemetry is not None
    return {
        "seconds_per_step": efficiency.latency_s_per_iteration,
        "seconds_per_step_ci95": efficiency.latency_s_per_iteration_ci95,
        "flops_per_step": efficiency.flops / efficiency.steps if efficiency.flops else None,
        "mfu": efficiency.mfu,
        "parameters_trainable": sum(trained),
        **_of_telemetry(efficiency.telemetry),
    }


def of_loop(shape: Shape, method: str, device: str, steps: int, root: Path) -> dict[str, Any]:
    """A step as one writes it with diffusers and peft alone."""
    adapter = ADAPTERS.get(method)
    transformer = shape.transformer(device, torch.bfloat16 if adapter else torch.float32)
    if adapter:
        transformer.add_adapter(adapter)
    else:
        transformer.requires_grad_(True)
    trained = [parameter for parameter in transformer.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.data = parameter.data.float()
    transformer.train()
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    like = {"device": device, "dtype": torch.bfloat16}
    latents = torch.randn(SAMPLES, 1, *shape.latents, **like)
    texts = {name: torch.randn(SAMPLES, 1, *size, **like) for name, size in shape.texts.items()}

    def step(first: int) -> None:
        for number in range(first, first + shape.per_step):
            clean = latents[number % SAMPLES]
            noise = torch.randn_like(clean)
            times = torch.sigmoid(torch.randn(1, device=device))
            share = times.view(-1, *(1,) * (clean.ndim - 1)).to(clean.dtype)
            with torch.autocast(device, torch.bfloat16):
                (output,) = transformer(
                    hidden_states=(1 - share) * clean + share * noise,
                    timestep=1000 * times,
                    return_dict=False,
                    **{name: values[number % SAMPLES] for name, values in texts.items()},
                )
            loss = (output.float() - (noise - clean).float()).square().flatten(1).mean(dim=1).mean()
            (loss / shape.per_step).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()

    with tempfile.TemporaryDirectory(dir=root) as place:
        telemetry = Telemetry(Path(place), device=_named(device), period_s=SAMPLE_PERIOD_S)
        with telemetry:
            for number in range(WARMUP_STEPS):
                step(number * shape.per_step)
            telemetry.begin_window(WINDOW)
            for number in range(steps):
                step(number * shape.per_step)
            if device == "cuda":
                torch.cuda.synchronize()
            telemetry.end_window(WINDOW)
        summary = telemetry.summary(WINDOW)
    return {
        "seconds_per_step": summary.duration_s / steps,
        "parameters_trainable": sum(parameter.numel() for parameter in trained),
        **_of_telemetry(summary),
    }


WAYS = {"stage": of_stage, "loop": of_loop}


def _named(device: str) -> str:
    return "cuda:0" if device == "cuda" else device


def _of_telemetry(summary: TelemetrySummary) -> dict[str, Any]:
    keys = ("allocator_peak_gb", "memory_process_peak_gb", "power_avg_w", "energy_j", "util_nvml", "duration_s")
    return {key: getattr(summary, key) for key in keys}


def measure(name: str, device: str, steps: int, root: Path) -> dict[str, Any]:
    """One variant; what fails says so."""
    shape, method, way = name.split(" ")
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    began = time.monotonic()
    try:
        figures = WAYS[way](SHAPES[shape], method, device, steps, root)
    except torch.OutOfMemoryError:
        raise
    # Whatever a variant meets, the others are to be measured.
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        return {"status": "failed", "reason": f"{type(error).__name__}: {reason}"}
    taken = {"samples_per_step": SHAPES[shape].per_step, "whole_s": time.monotonic() - began}
    return {"status": "ok", **figures, **taken}


def ratios(results: Results) -> dict[str, float]:
    """Time a step of the stage over that of the loop, where both were measured."""
    seconds = {name: result["seconds_per_step"] for name, result in results.items() if result["status"] == "ok"}
    loops = {name: name.replace(" stage", " loop") for name in seconds if name.endswith(" stage")}
    return {name: seconds[name] / seconds[loop] for name, loop in loops.items() if loop in seconds}


def report(name: str, result: dict[str, Any]) -> None:
    """Print one variant."""
    if result["status"] != "ok":
        print(f"{name:28} {result['status']}: {result['reason']}", flush=True)
        return
    shown = {key: "-" if result.get(key) is None else f"{result[key]:.3g}" for key in ("mfu", "allocator_peak_gb")}
    power = result["power_avg_w"]
    print(
        f"{name:28} {result['seconds_per_step'] * 1e3:9.1f} ms  MFU {shown['mfu']:>6}  peak "
        f"{shown['allocator_peak_gb']} GB  {'-' if power is None else f'{power:.0f}'} W  "
        f"{result['parameters_trainable'] / 1e6:.1f} M trained  whole {result['whole_s']:.1f} s",
        flush=True,
    )


def chosen(shapes: list[str], methods: list[str]) -> Iterator[str]:
    """The variants, those that tell most first."""
    for method in methods:
        for shape in shapes:
            yield f"{shape} {method} stage"
            if method == "full" or method in ADAPTERS:
                yield f"{shape} {method} loop"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["sd3.5-medium", "wan-1.3b"], metavar="NAME")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="NAME")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=10, help="measured steps of each variant, after three others")
    parser.add_argument("--budget-s", type=float, default=600, help="no variant begins after so many seconds")
    parser.add_argument("--output", type=Path, help="write all figures as JSON, and go on from what it holds")
    arguments = parser.parse_args()
    deadline = time.monotonic() + arguments.budget_s
    results: Results = {}
    if arguments.output and arguments.output.exists():
        results = json.loads(arguments.output.read_text())["variants"]
    names = takewhile(lambda _: time.monotonic() < deadline, chosen(arguments.shapes, arguments.methods))
    with tempfile.TemporaryDirectory() as root:

        def one(name: str) -> dict[str, Any]:
            return measure(name, arguments.device, arguments.steps, Path(root))

        measure_variants(names, one, report, ratios, arguments.device, arguments.output, results)


if __name__ == "__main__":
    main()
