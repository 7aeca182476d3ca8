"""Stage `diffuse`: a diffusion transformer trained from random weights on images.

in:  images, or latents of them
out: model/ (config, safetensors; the moving average of the weights), training.json (held-out loss, parameters, images
     seen)
     records/loss_curve.json, records/efficiency.json, records/telemetry/, records/held_out.parquet (image, its place
     in the held-out part, and its loss)

A run on noise measures and keeps no model: what it has learned is worth no more than random weights.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from effllm.data.images.store import ImageSet
from effllm.data.latents.store import LatentSet
from effllm.diffusion.chain import Chain, DdpmObjective
from effllm.diffusion.draws import TrainingDraws, collate
from effllm.diffusion.flow import FlowObjective
from effllm.diffusion.settings import Ddpm, Draws
from effllm.errors import CellFailure, UserError
from effllm.models.dit import DiT, DiTConfig, costs
from effllm.models.dit.architecture import side
from effllm.models.loading import moved
from effllm.results.training import DiffusionQuality
from effllm.runtime.stage import Job, main
from effllm.training.consumed import sample_order
from effllm.training.diffusion_settings import DiffusionRun
from effllm.training.ema import MovingAverage, take_average
from effllm.training.run import Setup, train

_SCORES = ("held_out_images", "held_out_loss", "held_out_loss_stderr")
# Draws for held-out images, so that they are the same for every run.
_HELD_OUT_SEED = 0


def build(job: Job) -> None:
    """Train, or go on from the last complete checkpoint in the scratch, and score the held-out images."""
    run = job.config(DiffusionRun)
    model, _ = train(job, run, setup, load)
    if run.ema is not None:
        take_average(model, job.scratch)
    scores: dict[str, Any] = dict.fromkeys(_SCORES) | {"reasons": dict.fromkeys(_SCORES, "trained on noise")}
    if not _is_noise(job):
        scores = _scored(job, run, model)
        model.save_pretrained(job.output / "model")
    count = costs.parameter_count(model.config)
    job.write(
        DiffusionQuality(
            **scores,
            images_seen=run.max_steps * run.global_batch_size,
            parameters=count.total,
            parameters_active=count.active,
            seed=run.seed,
            tokens_per_image=side(model.config) ** 2,
            train_images=len(_images(job, "train")),
        )
    )


def _scored(job: Job, run: DiffusionRun, model: DiT) -> dict[str, Any]:
    """The loss of the held-out images, all of which are recorded."""
    losses = _held_out_losses(model, run, _images(job, "held_out"))
    loss = float(losses.mean())
    if not math.isfinite(loss):
        raise CellFailure("nan", f"the held-out loss is {loss}")
    pq.write_table(pa.table({"image": np.arange(len(losses)), "loss": losses}), job.records / "held_out.parquet")
    several = len(losses) > 1
    error = float(losses.std(ddof=1)) / math.sqrt(len(losses)) if several else None
    reasons = {} if several else {"held_out_loss_stderr": "one held-out image"}
    return {**dict(zip(_SCORES, (len(losses), loss, error), strict=True)), "reasons": reasons}


def setup(job: Job) -> Setup[DiT]:
    """The model at its random weights, and the images of training in their order, each with what is drawn for it."""
    run = job.config(DiffusionRun)
    images = _images(job, "train")
    _require(job, run, images)
    torch.manual_seed(run.seed)
    model = DiT(DiTConfig(**run.architecture.settings()))
    classes, per_step = run.architecture.classes, run.global_batch_size
    order = sample_order(len(images), per_step, run.max_steps, run.seed)
    tokens, flops = per_step * side(model.config) ** 2, per_step * costs.training_flops(model.config)
    is_sharded = run.parallel.strategy == "fsdp2"
    objective = _objective(run)
    callbacks: list[TrainerCallback] = [_PlaceChain(objective.chain)] if isinstance(objective, DdpmObjective) else []
    if run.ema is not None:
        callbacks.append(MovingAverage(model, run.ema, job.scratch, is_sharded))
    return Setup(
        recipe=run,
        model=model,
        forward_options={"objective": objective},
        dataset=TrainingDraws(images, order, per_step, run.objective, run.draws, classes, run.seed),
        collate=collate,
        shuffle=False,
        tokens_of_step=lambda _: tokens,
        flops_of_step=lambda _: flops,
        callbacks=callbacks,
    )


class _PlaceChain(TrainerCallback):
    """Brings a chain's numbers to the device before a compiled step wants them there."""

    def __init__(self, chain: Chain):
        self._chain = chain

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> TrainerControl:
        self._chain.place(args.device)
        return control


def load(job: Job, directory: Path) -> DiT:
    """What the ranks have saved, on this process's device."""
    return moved(DiT.from_pretrained(directory), "cuda" if torch.cuda.is_available() else "cpu")


def _objective(run: DiffusionRun) -> DdpmObjective | FlowObjective:
    if isinstance(run.objective, Ddpm):
        return DdpmObjective(run.objective, run.architecture.learned_sigma)
    return FlowObjective()


def _is_noise(job: Job) -> bool:
    images = job.inputs.get("images")
    return images is not None and images.manifest.spec["config"]["source"]["kind"] == "noise"


def _images(job: Job, split: str) -> ImageSet | LatentSet:
    if "latents" in job.inputs:
        return LatentSet(job.inputs["latents"].directory, split)
    return ImageSet(job.inputs["images"].directory, split)


def _require(job: Job, run: DiffusionRun, images: ImageSet | LatentSet) -> None:
    shape = run.architecture
    if isinstance(images, LatentSet) and (shape.channels, shape.image_size) != (images.channels, images.size):
        raise UserError(
            f"diffusion.{job.id}.architecture: image_size {shape.image_size} and channels {shape.channels} are not "
            f"those of the latents {run.images!r}: write image_size {images.size} and channels {images.channels}."
        )
    known, wanted = len(images.classes), shape.classes
    if known != wanted:
        raise UserError(
            f"diffusion.{job.id}.architecture.classes: {wanted} is not the {known} of {run.images!r}: write {known}."
        )
    if len(images) < run.global_batch_size:
        raise UserError(
            f"diffusion.{job.id}.global_batch_size: {run.global_batch_size} is more than the {len(images)} images of "
            f"{run.images!r} for training: lower it."
        )


@torch.inference_mode()
def _held_out_losses(model: DiT, run: DiffusionRun, images: ImageSet | LatentSet) -> np.ndarray:
    """The mean loss of each held-out image over its draws, labels given, float64 (images,)."""
    model.eval()
    objective, count = _objective(run), len(images)
    order = np.tile(np.arange(count), run.held_out_draws)
    draws = TrainingDraws(
        images, order, count, run.objective, Draws(label_dropout=0.0), run.architecture.classes, _HELD_OUT_SEED
    )
    losses = [losses_of(model, objective, batch) for batch in _batches(draws, run.micro_batch_size)]
    return np.concatenate(losses).reshape(run.held_out_draws, count).mean(axis=0)


def _batches(draws: TrainingDraws, size: int) -> Iterator[dict[str, torch.Tensor]]:
    yield from DataLoader(draws, batch_size=size, collate_fn=collate)


def losses_of(model: DiT, objective: DdpmObjective | FlowObjective, batch: dict[str, torch.Tensor]) -> np.ndarray:
    """The loss of each image of a batch, float64."""
    images, noise, times, labels = (batch[key].to(model.device) for key in ("images", "noise", "times", "labels"))
    output = model(objective.noised(images, noise, times), objective.model_time(times), labels)
    return objective.losses(output.float(), images, noise, times).double().cpu().numpy()


if __name__ == "__main__":
    from effllm.stages.diffuse import DiffuseStage

    main(DiffuseStage(), build)
