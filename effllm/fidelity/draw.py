"""Stage `sample`: images sampled from a trained model of diffusion, and what sampling costs.

in:  run (of stage diffuse), and the autoencoder of its latents if it draws these
out: seed<seed>.images.bin, seed<seed>.labels.npy, sample.json
     records/sampling.json (images per s, J an image, memory), records/grid.png, records/telemetry/

A finished batch stays in the scratch, so that a run that was killed goes on behind it.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from effllm.data import arrays
from effllm.data.images.store import ImageWriter
from effllm.diffusion.sampling import sample
from effllm.errors import CellFailure
from effllm.fidelity.cost import IDLE, WORK, Work, sampling_cost
from effllm.fidelity.grid import write_grid
from effllm.fidelity.settings import SamplingProtocol
from effllm.models.autoencoder import Autoencoder, load_autoencoder
from effllm.models.dit import DiT
from effllm.models.dit.loading import load_dit
from effllm.results.fidelity import SampleSummary
from effllm.runtime.progress import Progress
from effllm.runtime.stage import Job, main
from effllm.telemetry import Telemetry, device_info
from effllm.telemetry.busy import warn_if_busy
from effllm.training.diffusion_settings import DiffusionRun

# Steps of the batch that is sampled before the others, and thrown away.
_WARM_UP_STEPS = 2


@dataclass(frozen=True)
class Batch:
    """Images `numbers` of a seed."""

    seed: int
    numbers: range

    def path(self, scratch: Path) -> Path:
        """Its file in the scratch."""
        return scratch / f"{self.seed}-{self.numbers.start}.npy"


def build(job: Job) -> None:
    """Sample what an earlier process has not, measured, and write the images of every seed."""
    protocol = job.config(SamplingProtocol)
    run = DiffusionRun.model_validate(job.inputs["run"].manifest.spec["config"])
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    info = device_info(device)
    warn_if_busy(device, job.id)
    if device != "cpu":
        torch.set_float32_matmul_precision("high")
    batches = [
        Batch(seed, range(start, min(start + protocol.batch_size, protocol.images)))
        for seed in protocol.seeds
        for start in range(0, protocol.images, protocol.batch_size)
    ]
    to_do = [batch for batch in batches if not batch.path(job.scratch).is_file()]
    try:
        model = load_dit(job.inputs["run"].directory / "model", device)
        autoencoder = None
        if "autoencoder" in job.inputs:
            autoencoder = load_autoencoder(job.inputs["autoencoder"].directory / "model", device)
        sampled = Sampled(model, run, protocol, autoencoder)
        work, telemetry = _sample_all(job, sampled, batches, to_do, device)
    except torch.cuda.OutOfMemoryError as error:
        raise CellFailure("oom", str(error).splitlines()[0]) from None
    shape = model.config
    channels, size = arrays.load(batches[0].path(job.scratch)).shape[1:3]
    for seed in protocol.seeds:
        with ImageWriter(job.output, f"seed{seed}") as writer:
            for batch in batches:
                if batch.seed == seed:
                    images = arrays.load(batch.path(job.scratch))
                    for image, label in zip(images, _labels(batch.numbers, shape.classes), strict=True):
                        writer.write(image, label)
    job.write(
        SampleSummary(
            images=protocol.images,
            seeds=protocol.seeds,
            classes=shape.classes,
            size=size,
            channels=channels,
            sampler=protocol.sampler.kind,
            steps=protocol.sampler.steps,
            guidance=protocol.sampler.guidance,
            evaluations_per_image=protocol.sampler.evaluations,
        )
    )
    job.write(sampling_cost(work, telemetry, info, protocol, shape))
    first = [arrays.load(batch.path(job.scratch)) for batch in batches if batch.seed == protocol.seeds[0]]
    write_grid(job.records / "grid.png", np.concatenate(first), shape.classes)


class Sampled:
    """Images of a model by their seed and number, the same in any batch up to rounding."""

    def __init__(
        self, model: DiT, run: DiffusionRun, protocol: SamplingProtocol, autoencoder: Autoencoder | None = None
    ):
        self._model, self._run, self._protocol, self._autoencoder = model, run, protocol, autoencoder

    def __call__(self, seed: int, numbers: Sequence[int], steps: int | None = None) -> np.ndarray:
        """uint8 [numbers, channels, size, size]; `steps` in place of the sampler's. `CellFailure` for no numbers."""
        shape, sampler = self._model.config, self._protocol.sampler
        if steps is not None:
            sampler = sampler.model_copy(update={"steps": min(steps, sampler.steps)})
        labels = torch.tensor(_labels(numbers, shape.classes), device=self._model.device)
        size = (shape.channels, shape.image_size, shape.image_size)
        images = sample(self._denoise, self._run.objective, sampler, labels, shape.classes, seed, numbers, size)
        if not images.isfinite().all():
            broken = int((~images.isfinite().flatten(1).all(dim=1)).sum())
            raise CellFailure("nan", f"{broken} of {len(images)} sampled images hold values that are not finite")
        if self._autoencoder is not None:
            return self._autoencoder.decode(images).cpu().numpy()
        return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu().numpy()

    def _denoise(self, noised: Tensor, times: Tensor, labels: Tensor) -> Tensor:
        kind = self._model.device.type
        with torch.autocast(kind, torch.bfloat16, enabled=self._protocol.dtype == "bfloat16"):
            predicted = self._model(noised, times, labels)
        assert isinstance(predicted, Tensor)
        return predicted


def _labels(numbers: Sequence[int], classes: int) -> list[int]:
    """Classes in turn; 0, which is then the label of no label, where there are none."""
    return [number % max(1, classes) for number in numbers]


def _sample_all(
    job: Job, sampled: Sampled, batches: list[Batch], to_do: list[Batch], device: str
) -> tuple[Work, Telemetry | None]:
    """Sample what is to be done, each batch in a window of its own, and keep it in the scratch."""
    done = sum(len(batch.numbers) for batch in batches) - sum(len(batch.numbers) for batch in to_do)
    work = Work(images_resumed=done)
    if not to_do:
        return work, None
    protocol = job.config(SamplingProtocol)
    with Telemetry(job.records / "telemetry", device=device, period_s=protocol.sample_period_s) as telemetry:
        with telemetry.window(IDLE):
            time.sleep(protocol.idle_s)
        sampled(to_do[0].seed, to_do[0].numbers, steps=_WARM_UP_STEPS)
        total = sum(len(batch.numbers) for batch in to_do)
        with Progress(total, unit="images", label=f"sampling {job.id}") as bar:
            for batch in to_do:
                with telemetry.window(WORK):
                    started = time.perf_counter()
                    images = sampled(batch.seed, batch.numbers)
                    work.add(len(images), time.perf_counter() - started)
                arrays.save(batch.path(job.scratch), images)
                bar.update(len(images))
    return work, telemetry


if __name__ == "__main__":
    from effllm.stages.sample import SampleStage

    main(SampleStage(), build)
