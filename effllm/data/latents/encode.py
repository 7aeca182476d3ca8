"""Stage `latents`: images encoded once by an autoencoder.

in:  images, autoencoder
out: <split>.latents.bin, <split>.labels.npy, latents.json (statistics of the latents, and how well images come back)

Whole batches stay in the scratch, so that a run that was killed goes on behind them.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from effllm.data import arrays
from effllm.data.images.store import SPLITS, ImageSet
from effllm.data.latents.settings import LatentsProtocol
from effllm.data.latents.store import STORED, latents_path
from effllm.data.writing import named_errors
from effllm.diffusion.draws import posterior_noise
from effllm.errors import CellFailure, UserError
from effllm.models.autoencoder import Autoencoder, load_autoencoder
from effllm.results.data import ImagesSummary, LatentsSummary
from effllm.runtime.progress import Progress
from effllm.runtime.stage import Job, main

# Images that are decoded again.
_DECODED = 64
# Latents that are read together for their statistics.
_CHUNK = 4096


def build(job: Job) -> None:
    """Encode both splits; `UserError` for images that do not fit the autoencoder, `CellFailure` for no numbers."""
    protocol = job.config(LatentsProtocol)
    images, summary = job.inputs["images"].directory, ImagesSummary.read(job.inputs["images"].directory)
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    # Convolutions in float32, by the same kernels each time.
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = False, True
    autoencoder = load_autoencoder(job.inputs["autoencoder"].directory / "model", device)
    _require_fit(job, summary, autoencoder)
    encoder = _Encoder(protocol, autoencoder, summary.size)
    total = sum(summary.splits.values())
    with Progress(total, unit="images", label=f"encoding {job.id}") as bar:
        for number, split in enumerate(SPLITS):
            for count in encoder.encode(ImageSet(images, split), latents_path(job.scratch, split), number):
                bar.update(count)
    mean, deviation = _statistics(job.scratch, encoder.shape)
    error = _decoding_error(ImageSet(images, "held_out"), latents_path(job.scratch, "held_out"), encoder)
    for split in SPLITS:
        latents_path(job.scratch, split).rename(latents_path(job.output, split))
        arrays.save(job.output / f"{split}.labels.npy", arrays.load(images / f"{split}.labels.npy"))
    views, channels, size, _ = encoder.shape
    job.write(
        LatentsSummary(
            splits=summary.splits,
            classes=summary.classes,
            views=views,
            channels=channels,
            size=size,
            image_channels=summary.channels,
            image_size=summary.size,
            posterior=protocol.posterior,
            mean=mean,
            standard_deviation=deviation,
            decoded_images=min(_DECODED, summary.splits["held_out"]),
            decoded_psnr_db=error,
            autoencoder_parameters=autoencoder.parameters,
        )
    )


def _require_fit(job: Job, images: ImagesSummary, autoencoder: Autoencoder) -> None:
    shape, id = autoencoder.shape, job.inputs["images"].manifest.id
    if images.channels != shape.channels:
        raise UserError(
            f"latents.{job.id}.autoencoder: it takes images of {shape.channels} channels, and {id!r} have "
            f"{images.channels}: write images.{id}.channels: {shape.channels}."
        )
    if images.size % shape.downscale:
        raise UserError(
            f"latents.{job.id}.images: a side of {images.size} pixels is no multiple of the {shape.downscale} that the "
            f"autoencoder makes one latent of: write images.{id}.size as one."
        )


class _Encoder:
    def __init__(self, protocol: LatentsProtocol, autoencoder: Autoencoder, size: int):
        self._protocol, self.autoencoder = protocol, autoencoder
        side = size // autoencoder.shape.downscale
        # Of one image: its views, channels, and sides.
        self.shape = (1 + protocol.mirrored, autoencoder.shape.latent_channels, side, side)
        self._image_b = math.prod(self.shape) * STORED.itemsize

    def encode(self, images: ImageSet, path: Path, split: int) -> Iterator[int]:
        """Write what `path` does not hold yet, and yield images by the batch, those that it held first."""
        step = self._protocol.batch_size
        done = path.stat().st_size // self._image_b if path.exists() else 0
        # The batches of an uninterrupted run: a batch's size changes latents by rounding.
        done -= done % step
        with named_errors(path), open(path, "ab") as file:
            file.truncate(done * self._image_b)
            yield done
            for start in range(done, len(images), step):
                numbers = range(start, min(start + step, len(images)))
                latents = self._encoded(np.array(images.pixels[numbers.start : numbers.stop]), numbers, split)
                if not np.isfinite(latents).all():
                    raise CellFailure("nan", f"latents of images {numbers.start} to {numbers.stop - 1} are not finite")
                file.write(latents.tobytes())
                file.flush()
                yield len(numbers)

    def _encoded(self, pixels: np.ndarray, numbers: range, split: int) -> np.ndarray:
        """Latents of a batch, float16 [images, views, channels, side, side]."""
        views, *one = self.shape
        batch, found = torch.from_numpy(pixels), []
        for view in range(views):
            noise = None
            if self._protocol.posterior == "sample":
                noise = posterior_noise(self._protocol.seed, 2 * split + view, numbers, one)
            found.append(self.autoencoder.encode(batch.flip(-1) if view else batch, noise))
        # Beyond float16 a latent becomes infinite, and is refused as such.
        return torch.stack(found, dim=1).to(torch.float16).cpu().numpy()


def _statistics(scratch: Path, shape: tuple[int, ...]) -> tuple[float, float]:
    """Mean and standard deviation of the latents of training."""
    latents = np.memmap(latents_path(scratch, "train"), dtype=STORED, mode="r").reshape(-1, *shape)
    count, total, squares = 0, 0.0, 0.0
    for start in range(0, len(latents), _CHUNK):
        chunk = latents[start : start + _CHUNK].astype(np.float64)
        count, total, squares = count + chunk.size, total + chunk.sum(), squares + (chunk**2).sum()
    mean = total / count
    return float(mean), float(math.sqrt(max(0.0, squares / count - mean**2)))


def _decoding_error(images: ImageSet, path: Path, encoder: _Encoder) -> float | None:
    """Peak signal-to-noise ratio in dB of held-out images that were encoded and decoded; None if they are equal."""
    taken = min(_DECODED, len(images))
    latents = np.memmap(path, dtype=STORED, mode="r").reshape(-1, *encoder.shape)[:taken, 0]
    errors = []
    for number in range(taken):
        decoded = encoder.autoencoder.decode(torch.from_numpy(np.array(latents[number : number + 1], np.float32)))
        errors.append(np.square(decoded[0].cpu().numpy().astype(np.float64) - images.pixels[number]).mean())
    error = float(np.mean(errors))
    return 10 * math.log10(255**2 / error) if error else None


if __name__ == "__main__":
    from effllm.stages.latents import LatentsStage

    main(LatentsStage(), build)
