"""A training step of a model of Qwen2.5-VL-7B's shape on random images: its methods, beside plain peft.

    python benchmarks/vision_language.py [--shape 7b] [--pixels 1008] [--rows NAME ...] [--output vision.json]

Weights are drawn on the device, in bfloat16 where they are fixed; images are squares of noise, kept as JPEG, and a
question of some 100 tokens is asked about each. A row is what stage `finetune` does once its base model is loaded: it
makes the method's model, encodes the samples, and trains under its telemetry. Eight samples a step, two at a time,
activations recomputed, as in the paper's Table 12.

bare    the same step as a page of peft and Transformers, on the batches that the stage makes
full-8  the model itself, of 8 of the 28 layers: 16 bytes for each of 8.3 billion parameters do not fit one GPU, and
        offloaded they take 133 GB of the host's memory

PiSSA starts from a randomised decomposition here (the stage's exact one takes minutes at this size, and `svd` is the
time of the largest matrix alone): its step is the same.

The output is written after each row; a row that runs out of memory is recorded, and the next goes on. A row begins
only if `--budget-s` leaves it the time of the longest before.
"""

import argparse
import json
import statistics
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from variants import measure_variants

from effllm.data.instructions.batches import take_indices
from effllm.data.instructions.prepare import prepare
from effllm.data.instructions.settings import Instructions
from effllm.data.instructions.sources import open_source
from effllm.errors import CellFailure
from effllm.models.text import text_config
from effllm.models.vision_language.random_model import IMAGE_TOKENS
from effllm.models.vision_language.windows import attend_by_windows
from effllm.results.training import Efficiency
from effllm.runtime.artifact import Artifact, Manifest
from effllm.runtime.stage import Job
from effllm.training.finetune import Finetuning
from effllm.training.run import run_rank
from effllm.training.step_timing import WARMUP_STEPS
from effllm.training.suites import FinetuningRun

SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "7b": (
        {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
         "num_key_value_heads": 4, "vocab_size": 152064, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6,
         "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}},
        {"hidden_size": 1280, "intermediate_size": 3420, "depth": 32, "num_heads": 16, "patch_size": 14,
         "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31]},
    ),
    # For trying the script out where there is no GPU.
    "tiny": (
        {"hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
         "num_key_value_heads": 1, "vocab_size": 512, "max_position_embeddings": 2048,
         "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]}},
        {"hidden_size": 64, "intermediate_size": 128, "depth": 2, "num_heads": 4, "patch_size": 14,
         "window_size": 56, "fullatt_block_indexes": [1]},
    ),
}  # fmt: skip
_LOW_RANK = {"rank": 64, "alpha": 128, "dropout": 0.1}
ROWS: dict[str, dict[str, Any]] = {
    "lora": {"kind": "lora", **_LOW_RANK},
    "bare": {"kind": "lora", **_LOW_RANK},
    "pissa": {"kind": "pissa", **_LOW_RANK},
    "rslora": {"kind": "rslora", **_LOW_RANK},
    "lora-plus": {"kind": "lora_plus", "learning_rate_ratio": 16, **_LOW_RANK},
    "full-8": {"kind": "full"},
    "svd": {},
}
SAMPLES, IMAGES = 8, 24
_FULL_LAYERS = 8


class Bench(Finetuning):
    """The stage's task with a base model that is drawn on the device and on no disk."""

    has_project_attention = True

    def __init__(self, job: Job, device: str):
        super().__init__(job)
        self._device = device

    def load_base(self) -> PreTrainedModel:
        config = AutoConfig.from_pretrained(self.base.directory / "model")
        dtype = torch.float32 if self.run.trains_whole_model else torch.bfloat16
        if self.run.trains_whole_model:
            text_config(config).num_hidden_layers = min(_FULL_LAYERS, text_config(config).num_hidden_layers)
            text_config(config).layer_types = text_config(config).layer_types[:_FULL_LAYERS]
        with torch.device(self._device):
            model = AutoModelForImageTextToText.from_config(config, dtype=dtype)
        text_config(model.config).use_cache = False
        if self.has_project_attention:
            # As for every model that is loaded.
            attend_by_windows(model)
        return model


class Workshop:
    """Model and instructions on disk, as the stage finds them, but for the weights."""

    def __init__(self, root: Path, shape: str, pixels: int, steps: int, device: str):
        self._root, self._steps, self._device = root, steps, device
        text, vision = SHAPES[shape]
        self._model = self._artifact("model", {"kind": "random"})
        self._instructions = self._artifact("instructions", {})
        directory = self._model.directory / "model"
        tokenizer = _tokenizer()
        ids = [tokenizer.convert_tokens_to_ids(token) for token in IMAGE_TOKENS["qwen2_5_vl"]]
        names = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
        out = {"out_hidden_size": text["hidden_size"], "spatial_merge_size": 2, "temporal_patch_size": 2}
        AutoConfig.for_model(
            "qwen2_5_vl",
            text_config=text | {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": None, "pad_token_id": None},
            vision_config=vision | out,
            tie_word_embeddings=False,
            **dict(zip(names, ids, strict=True)),
        ).save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        area = {"shortest_edge": 56 * 56, "longest_edge": pixels**2}
        Qwen2VLImageProcessorPil(size=area, patch_size=vision["patch_size"]).save_pretrained(directory)
        self._write_instructions(pixels)

    def task(self, row: str) -> Bench:
        """The row's job, in an empty directory."""
        run = FinetuningRun.model_validate(
            {
                "method": ROWS[row],
                "encoding": {"template": "plain", "sequence_length": 8192},
                "samples_per_step": SAMPLES,
                "micro_batch_size": 2,
                "max_steps": WARMUP_STEPS + self._steps,
                "learning_rate": 2e-5,
                "parallel": {},
                "activation_checkpointing": True,
                "deterministic": False,
                "checkpoint_every_steps": None,
                "log_every_steps": WARMUP_STEPS + self._steps,
            }
        )
        output = self._root / row
        inputs = {"model": self._model, "instructions": self._instructions}
        scratch = self._root / f"{row}-scratch"
        scratch.mkdir()
        (output / "records").mkdir(parents=True)
        spec = {"config": run.plain()}
        id = f"qwen2.5-vl.random.{row}"
        return Bench(Job("finetune", "", id, spec, inputs, {}, output, output / "records", scratch), self._device)

    def _artifact(self, stage: str, config: dict[str, Any]) -> Artifact:
        directory = self._root / stage
        directory.mkdir(parents=True)
        return Artifact(directory, Manifest(stage, "random", {"config": config}, "ok", None, {}, {}), "")

    def _write_instructions(self, pixels: int) -> None:
        source = self._root / "source"
        source.mkdir()
        images, rows = {}, []
        for index in range(IMAGES):
            levels = np.random.default_rng(index).integers(0, 256, (16, 16, 3), np.uint8)
            image = Image.fromarray(levels).resize((pixels, pixels), Image.Resampling.BICUBIC)
            images[f"images[{index}]"] = source / f"{index}.jpg"
            image.save(source / f"{index}.jpg", quality=90)
            question = "Which of the squares is the brightest, and by how much is it brighter than its neighbours?"
            rows.append({"prompt": question, "response": f"square {index}", "image": f"{index}.jpg"})
        (source / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        config = Instructions.model_validate(
            {
                "source": {
                    "kind": "files",
                    "paths": [str(source / "rows.jsonl")],
                    "images": [str(source / "*.jpg")],
                    "columns": {"kind": "prompt_response", "image": "image"},
                },
                "held_out_fraction": 0.3,
            }
        )
        opened = open_source(config.source, {"files[0]": source / "rows.jsonl", **images}, self._root / "hub")
        directory = self._instructions.directory
        summary = prepare(opened, config, directory)
        (directory / summary.FILE).write_text(summary.to_json())


def _tokenizer() -> PreTrainedTokenizerFast:
    """A token a byte, and the family's own for images."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    tokenizer.add_special_tokens({"additional_special_tokens": list(IMAGE_TOKENS["qwen2_5_vl"])})
    return tokenizer


def measure(row: str, workshop: Workshop, shape: str, device: str) -> dict[str, Any]:
    """The figures of a row."""
    if row == "svd":
        return measure_decomposition(shape, device)
    task = workshop.task(row)
    task.has_project_attention = row != "bare"
    return measure_bare(task, device) if row == "bare" else measure_stage(task)


def measure_stage(task: Bench) -> dict[str, Any]:
    """A row by the stage's own code."""
    started = time.perf_counter()
    with randomised_decompositions():
        setup = task.setup()
    setup_s = time.perf_counter() - started
    run_rank(task.job, setup)
    found = Efficiency.read(task.job.output)
    telemetry = {} if found.telemetry is None else found.telemetry.model_dump()
    names = ("power_avg_w", "energy_j", "allocator_peak_gb", "memory_process_peak_gb", "util_nvml", "sm_clock_avg_mhz")
    sizes = json.loads((task.job.scratch / "sizes.json").read_text())
    return {
        "seconds_per_step": found.latency_s_per_iteration,
        "interval": found.latency_s_per_iteration_ci95,
        "steps": found.steps,
        "mfu": found.mfu,
        "flops_per_step": None if found.flops is None else found.flops / found.steps,
        "tokens_per_step": None if found.tokens is None else found.tokens / found.steps,
        "image_tokens": task.training.counts["image_tokens"] / task.training.counts["samples"],
        "setup_s": setup_s,
        "reasons": found.reasons,
        **{name: telemetry.get(name) for name in names},
        **sizes,
    }


def measure_bare(task: Bench, device: str) -> dict[str, Any]:
    """The same step as somebody would write it with peft and Transformers alone."""
    from peft import LoraConfig, get_peft_model

    method = ROWS["bare"]
    config = LoraConfig(
        r=method["rank"],
        lora_alpha=method["alpha"],
        lora_dropout=method["dropout"],
        target_modules=r".*language_model.*\.(q|k|v|o|gate|up|down)_proj",
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(task.load_base(), config).train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=task.run.learning_rate, fused=True)
    collate, sequences, micro = task.collate(packing=False), task.training.sequences, task.run.micro_batch_size
    seconds, in_images = [], 0.0
    for step in range(task.recipe.max_steps):
        if device == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        for first in range(0, SAMPLES, micro):
            chosen = [(step * SAMPLES + first + place) % len(sequences) for place in range(micro)]
            clock = time.perf_counter()
            batch = collate([(index, sequences[index]) for index in chosen])
            in_images += time.perf_counter() - clock
            take_indices(batch)
            with torch.autocast(device, torch.bfloat16):
                loss = model(**{name: tensor.to(device) for name, tensor in batch.items()}).loss
            (loss / (SAMPLES // micro)).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return {
        "seconds_per_step": statistics.fmean(seconds[WARMUP_STEPS:]),
        "all_seconds": seconds,
        "images_s_per_step": in_images / len(seconds),
        "allocator_peak_gb": torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else None,
        "parameters_trainable": sum(parameter.numel() for parameter in parameters),
    }


def measure_decomposition(shape: str, device: str) -> dict[str, Any]:
    """Seconds of the exact decomposition of one of the largest matrices."""
    text, _ = SHAPES[shape]
    size = text["intermediate_size"], text["hidden_size"]
    weight = torch.randn(size, device=device) * 0.02
    started = time.perf_counter()
    torch.linalg.svd(weight, full_matrices=False)[1].sum().item()
    return {"seconds": time.perf_counter() - started, "matrix": size}


@contextmanager
def randomised_decompositions() -> Iterator[None]:
    """Let PiSSA start from the leading singular parts alone."""
    exact = torch.linalg.svd

    def leading(matrix: torch.Tensor, full_matrices: bool = True) -> tuple[torch.Tensor, ...]:
        drawn = torch.randn(matrix.shape[1], int(min(_LOW_RANK["rank"], *matrix.shape)), device=matrix.device)
        basis = torch.linalg.qr(matrix @ (matrix.mT @ (matrix @ drawn.to(matrix.dtype)))).Q
        left, values, right = exact(basis.mT @ matrix, full_matrices=False)
        return basis @ left, values, right

    torch.linalg.svd = leading
    try:
        yield
    finally:
        torch.linalg.svd = exact


def ratios(results: dict[str, Any]) -> dict[str, float]:
    """The stage's seconds a step over those of the bare loop."""
    times = {name: results[name].get("seconds_per_step") for name in ("lora", "bare") if name in results}
    return {"lora over bare": times["lora"] / times["bare"]} if len(times) == 2 and all(times.values()) else {}


def report(name: str, result: dict[str, Any]) -> None:
    """Print one row."""
    print(f"{name:10} {json.dumps({key: value for key, value in result.items() if key != 'reasons'})}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--pixels", type=int, default=1008, help="width and height of the images, a multiple of 28")
    parser.add_argument("--steps", type=int, default=8, help=f"measured steps of each row, after {WARMUP_STEPS} others")
    parser.add_argument("--budget-s", type=float, default=600.0, help="begin no row later than this allows")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, help="write all figures as JSON")
    arguments = parser.parse_args()
    began, longest = time.monotonic(), 0.0

    def affordable() -> Iterator[str]:
        for name in arguments.rows:
            if time.monotonic() - began + longest < arguments.budget_s:
                yield name
            else:
                print(f"{name:10} not begun: the budget is spent", flush=True)

    with tempfile.TemporaryDirectory() as root:
        workshop = Workshop(Path(root), arguments.shape, arguments.pixels, arguments.steps, arguments.device)

        def one(name: str) -> dict[str, Any]:
            nonlocal longest
            started = time.monotonic()
            if arguments.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            try:
                found = {"status": "ok", **measure(name, workshop, arguments.shape, arguments.device)}
            except CellFailure as failure:
                found = {"status": failure.status, "reason": failure.reason}
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                # The rows after it are worth their time.
                traceback.print_exc()
                found = {"status": "failed", "reason": f"{type(error).__name__}: {error}"[:500]}
            took = time.monotonic() - started
            longest = max(longest, took)
            conditions = {"shape": arguments.shape, "pixels": arguments.pixels, "samples_per_step": SAMPLES}
            return {**conditions, **found, "took_s": took}

        measure_variants(affordable(), one, report, ratios, arguments.device, arguments.output, {})


if __name__ == "__main__":
    main()
