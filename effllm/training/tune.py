"""Stage `tune`: one method on the transformer of a pipeline for images or videos.

in:  generator, encodings
out: adapter/ (peft's format), and for diffusers lora/ of LoRA's kin or transformer/ of other methods; training.json
     records/loss_curve.json, records/efficiency.json, records/telemetry/, records/held_out.parquet (loss of each sample
     and time, before and after), records/previews.png (samples before and after, and held-out ones)
"""

import gc
import json
import math
import statistics
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import set_seed

from effllm.data.encodings.store import EncodedSet
from effllm.errors import CellFailure, UserError
from effllm.models.generators import FAMILIES
from effllm.models.loading import moved
from effllm.results.data import EncodingsSummary
from effllm.results.training import TuningQuality
from effllm.runtime.artifact import write_text
from effllm.runtime.progress import progress
from effllm.runtime.stage import Job, main
from effllm.training.adapters import adapter_bytes, why_null, write_start
from effllm.training.caption_draws import CaptionDraws, batches_of_one_shape, collate, held_out_batches, shaped_order
from effllm.training.consumed import order_digest
from effllm.training.flow_transformer import FlowTransformer, arithmetic, step_flops
from effllm.training.preview import draw, held_out, write_previews
from effllm.training.run import Setup, train
from effllm.training.settings import Recipe
from effllm.training.tune_output import save_tuned
from effllm.training.tuning_settings import TuningRun

_START = "start"
_CHOSEN = "chosen.json"
"""Below the scratch, written by whoever trains: the rank of an adapter, where the program has chosen it."""
_TRAINED = "model.safetensors"


class Tuning:
    """What a job is about, each part read when it is asked for."""

    def __init__(self, job: Job):
        self.job = job
        self.run = job.config(TuningRun)
        self.base = job.inputs["generator"]
        self.encodings = job.inputs["encodings"].directory
        self.family = FAMILIES[EncodingsSummary.read(self.encodings).family]
        _, self.suite, self.method = job.id.rsplit(".", 2)

    @cached_property
    def training(self) -> EncodedSet:
        """The training samples."""
        return EncodedSet(self.encodings, "train")

    @cached_property
    def held_out(self) -> EncodedSet:
        """The held-out samples."""
        return EncodedSet(self.encodings, "held_out")

    @cached_property
    def scored(self) -> list[int]:
        """Numbers of the held-out samples that are scored."""
        count = min(self.run.held_out_samples or len(self.held_out), len(self.held_out))
        return sorted(np.random.default_rng(self.run.seed).choice(len(self.held_out), count, replace=False).tolist())

    @cached_property
    def recipe(self) -> Recipe:
        """What the Trainer is told."""
        try:
            return self.run.recipe(len(self.training))
        except ValueError as error:
            raise UserError(f"tuning.{self.suite}: {error}.") from None

    @cached_property
    def order(self) -> np.ndarray:
        """Numbers of training samples, [steps, samples of a step]."""
        shapes = [sample.shape for sample in self.training.samples]
        order = shaped_order(shapes, self.run.samples_per_step, self.recipe.max_steps, self.run.seed)
        return order.reshape(self.recipe.max_steps, -1)

    @property
    def device(self) -> str:
        """Where models are scored and draw."""
        return "cuda:0" if torch.cuda.is_available() else "cpu"

    @property
    def base_name(self) -> tuple[str, str | None]:
        """What the base model is called: its repository on the hub and the commit, or its node."""
        source = self.base.manifest.spec["config"]
        if source["kind"] == "hub":
            return source["repo"], source["revision"]
        return f"{self.base.manifest.stage}/{self.base.manifest.id}", None

    def load_base(self) -> FlowTransformer:
        """The base model on the CPU, in float32 where it is trained itself, otherwise in the type of the arithmetic."""
        dtype = torch.float32 if self.run.trains_whole_model else getattr(torch, self.run.dtype)
        return FlowTransformer(self.family.load_transformer(self.base.directory / "model", dtype), self.family)

    def prepared(self) -> tuple[FlowTransformer, Any]:
        """The model as the method makes it ready, and what else the method says."""
        set_seed(self.run.seed)
        model = self.load_base()
        if self.run.parallel.strategy == "single":
            # Methods that decompose the weights take minutes on a CPU.
            moved(model, self.device)
        prepared = self.run.method.apply(model.transformer, f"methods.{self.method}")
        if prepared.initial_adapter is not None:
            write_start(prepared.initial_adapter, self.job.scratch / _START)
        chosen = {"adapter_rank": prepared.rank, "parameters_matched": prepared.parameters_matched}
        given = {key: value for key, value in chosen.items() if value is not None}
        write_text(self.job.scratch / _CHOSEN, json.dumps(given))
        return FlowTransformer(prepared.model, self.family), prepared

    def setup(self) -> Setup[FlowTransformer]:
        """The model, and the samples in the order of training with what is drawn for each."""
        recipe, samples, order = self.recipe, self.training, self.order
        model, prepared = self.prepared()
        dataset = CaptionDraws(samples, order.reshape(-1), self.run)
        shapes = [samples.samples[int(numbers[0])].shape for numbers in order]
        per_step = self.run.samples_per_step
        passes = per_step // self.run.micro_batch_size
        flops: dict[tuple[int, ...], int] = {}
        patches: dict[tuple[int, ...], int] = {}
        for step, shape in enumerate(shapes):
            if shape not in flops:
                flops[shape] = step_flops(model, collate([dataset[step * per_step]]), per_step, passes)
                patches[shape] = self.family.patches(model.transformer, shape)

        return Setup(
            recipe=recipe,
            model=model,
            dataset=dataset,
            collate=collate,
            tokens_of_step=lambda step: per_step * patches[shapes[step]],
            flops_of_step=lambda step: flops[shapes[step]],
            make_optimizer=lambda model: prepared.optimizer(model, recipe.optimizer),
            shuffle=False,
        )

    @torch.inference_mode()
    def score(self, model: FlowTransformer, when: str) -> np.ndarray:
        """Loss of each scored sample at each time, float64 (samples, times). `CellFailure` for no numbers."""
        moved(model, self.device).eval()
        losses = np.zeros((len(self.scored), len(self.run.held_out_times)))
        row = {number: index for index, number in enumerate(self.scored)}
        batches = held_out_batches(self.held_out, self.scored, self.run.held_out_times, self.run.micro_batch_size)
        size = self.run.micro_batch_size
        count = len(self.run.held_out_times) * sum(1 for _ in batches_of_one_shape(self.held_out, self.scored, size))
        for numbers, of_time, batch in progress(batches, count, unit="batches", label=f"{self.job.id}, held-out loss"):
            inputs = {name: values.to(model.device) for name, values in batch.items()}
            with arithmetic(self.run.dtype, model.device):
                found = model.losses(**inputs).double().cpu().numpy()
            losses[[row[number] for number in numbers], of_time] = found
        if not np.isfinite(losses).all():
            raise CellFailure("nan", f"the held-out loss {when} is not finite")
        return losses

    @cached_property
    def autoencoder(self) -> Any:
        """The pipeline's."""
        return self.family.load_autoencoder(self.base.directory / "model", self.device)

    def draw(self, model: FlowTransformer) -> dict[int, np.ndarray]:
        """The previews of a model."""
        return draw(moved(model, self.device), self.autoencoder, self.held_out, self.run)


def build(job: Job) -> None:
    """Train, or go on from the last complete checkpoint, score the model before and after, and write what was learned.

    The base model is scored last: before the ranks start, this process must not touch their devices.
    """
    task = Tuning(job)
    model, curve = train(job, task.recipe, lambda _: task.setup(), load)
    after = task.score(model, "after")
    previews = task.draw(model) if task.run.preview else {}
    sizes = _sizes(task, model)
    start = job.scratch / _START
    save_tuned(model, task.base.directory / "model", task.base_name, start if start.exists() else None, job.output)
    adapter = job.output / "adapter"
    del model
    gc.collect()
    base = task.load_base()
    before = task.score(base, "before")
    if task.run.preview:
        wanted = held_out(task.family, task.autoencoder, task.held_out, task.run)
        write_previews(job.records / "previews.png", [task.draw(base), previews, wanted])
    pq.write_table(_by_sample(task, before, after), job.records / "held_out.parquet")
    names = [[task.training.samples[number].name for number in numbers] for numbers in task.order.tolist()]
    points = [point.loss for point in curve.curve]
    figures: dict[str, Any] = {
        **sizes,
        **json.loads((job.scratch / _CHOSEN).read_text()),
        **_losses("held_out_loss", after),
        **_losses("held_out_loss_before", before),
        "held_out_loss_by_time": _by_time(task, after),
        "held_out_loss_before_by_time": _by_time(task, before),
        "held_out_samples": len(task.scored),
        "train_loss": statistics.fmean(points) if points else None,
        "train_loss_last": points[-1] if points else None,
        "adapter_bytes": adapter_bytes(adapter) if adapter.exists() else None,
        "learning_rate": task.run.learning_rate,
        "micro_batch_size": task.recipe.micro_batch_size,
        "sample_order_sha256": order_digest(names),
        "samples_per_step": task.run.samples_per_step,
        "samples_seen": task.order.size,
        "train_samples": len(task.training),
        "seed": task.run.seed,
        "steps": task.recipe.max_steps,
    }
    job.write(TuningQuality(**figures, reasons=why_null(figures, "one held-out sample")))


def setup(job: Job) -> Setup[FlowTransformer]:
    """What a rank trains."""
    return Tuning(job).setup()


def load(job: Job, directory: Path) -> FlowTransformer:
    """What the ranks have saved, in the model that they made of the base."""
    model, _ = Tuning(job).prepared()
    model.load_state_dict(load_file(directory / _TRAINED))
    return model


def _sizes(task: Tuning, model: nn.Module) -> dict[str, int]:
    """Parameters of the base model's transformer and of what is trained."""
    named = list(model.named_parameters())
    return {
        "parameters": sum(p.numel() for name, p in named if not task.run.method.is_added(name)),
        "parameters_trainable": sum(p.numel() for _, p in named if p.requires_grad),
    }


def _losses(key: str, losses: np.ndarray) -> dict[str, float | None]:
    """The mean over samples of their means over times, and its standard error, samples as draws."""
    of_samples = losses.mean(axis=1)
    error = float(of_samples.std(ddof=1)) / math.sqrt(len(of_samples)) if len(of_samples) > 1 else None
    return {key: float(of_samples.mean()), f"{key}_stderr": error}


def _by_time(task: Tuning, losses: np.ndarray) -> dict[str, float]:
    means: Sequence[float] = losses.mean(axis=0).tolist()
    return {f"{time:g}": mean for time, mean in zip(task.run.held_out_times, means, strict=True)}


def _by_sample(task: Tuning, before: np.ndarray, after: np.ndarray) -> pa.Table:
    """Columns sample (name), caption, loss before and after: means over the times."""
    samples = [task.held_out.samples[number] for number in task.scored]
    return pa.table(
        {
            "sample": [sample.name for sample in samples],
            "caption": [sample.caption for sample in samples],
            "loss_before": before.mean(axis=1),
            "loss": after.mean(axis=1),
        }
    )


if __name__ == "__main__":
    from effllm.stages.tune import TuneStage

    main(TuneStage(), build)
