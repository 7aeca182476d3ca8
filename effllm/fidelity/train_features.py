"""Stage `features`: a network that gives features of images, by which samples are compared with real ones.

in:  images (kind trained)
out: network.safetensors, features.json (what it takes, and its accuracy on held-out images)
"""

import pickle
from pathlib import Path

import numpy as np
import torch
from pydantic import RootModel
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from effllm.data.images.store import ImageSet
from effllm.errors import UserError, reason_of
from effllm.fidelity.networks import WEIGHTS, SmallNetwork, scaled
from effllm.fidelity.settings import LEAST_CLASSES, FeatureNetwork, InceptionFeatures, TrainedFeatures, untold_by
from effllm.hub.address import Address
from effllm.results.fidelity import FeaturesSummary
from effllm.runtime.stage import Job, main

_INCEPTION_WIDTH = 2048
# Of features that are the same in all images.
_LEAST_DEVIATION = 1e-6


class _Config(RootModel[FeatureNetwork]):
    pass


def build(job: Job) -> None:
    """Train the network on one thread, or fetch Inception's weights."""
    settings = job.config(_Config).root
    if isinstance(settings, InceptionFeatures):
        _fetch(job, settings)
    else:
        _train(job, settings)


def _fetch(job: Job, settings: InceptionFeatures) -> None:
    path = inception_address(settings).into_cache()
    weights = _tensors(path)
    save_file(weights, job.output / WEIGHTS)
    unknown = dict.fromkeys(("train_images", "held_out_images", "held_out_accuracy"), "it was trained elsewhere")
    job.write(
        FeaturesSummary(
            kind="inception",
            width=_INCEPTION_WIDTH,
            parameters=sum(weight.numel() for weight in weights.values()),
            channels=None,
            size=None,
            classes=None,
            train_images=None,
            held_out_images=None,
            held_out_accuracy=None,
            reasons=unknown | {"classes": "its labels are not those of the study"},
        )
    )


def inception_address(settings: InceptionFeatures) -> Address:
    """Where the weights are."""
    return Address("features.url", settings.url, settings.sha256)


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise UserError(f"features.url: the file holds no tensors ({reason_of(error)}); correct the address.") from None
    return {name: weight.contiguous() for name, weight in weights.items()}


def _train(job: Job, settings: TrainedFeatures) -> None:
    directory = job.inputs["images"].directory
    train, held_out = (ImageSet(directory, split) for split in ("train", "held_out"))
    labels = len(np.unique(train.labels)) if train.classes else 0
    if labels < LEAST_CLASSES:
        raise UserError(f"features.{job.id}.images: {settings.images!r} {untold_by(labels)}.")
    # On one thread, so that its bits do not depend on the machine's cores.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        network = _trained(settings, train)
        found = network.labels(_all(held_out)).numpy()
    finally:
        torch.set_num_threads(threads)
    accuracy = float((found == held_out.labels).mean())
    save_file(network.state_dict(), job.output / WEIGHTS)
    job.write(
        FeaturesSummary(
            kind="trained",
            width=settings.width,
            parameters=sum(parameter.numel() for parameter in network.parameters()),
            channels=train.pixels.shape[1],
            size=train.pixels.shape[2],
            classes=train.classes,
            train_images=len(train),
            held_out_images=len(held_out),
            held_out_accuracy=accuracy,
            reasons={},
        )
    )


def _trained(settings: TrainedFeatures, images: ImageSet) -> SmallNetwork:
    torch.manual_seed(settings.seed)
    network = SmallNetwork(images.pixels.shape[1], settings.width, len(images.classes))
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
    drawn = torch.Generator().manual_seed(settings.seed)
    for _ in range(settings.steps):
        numbers = torch.randint(len(images), (settings.batch_size,), generator=drawn).numpy()
        batch = scaled(torch.from_numpy(images.pixels[numbers]))
        batch = batch + settings.noise * torch.randn(batch.shape, generator=drawn)
        loss = F.cross_entropy(network(batch), torch.from_numpy(images.labels[numbers].astype(int)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        falling.step()
    network.eval().requires_grad_(False)
    raw = torch.cat([network.raw(scaled(part)) for part in _all(images).split(settings.batch_size)])
    network.mean.copy_(raw.mean(dim=0))
    network.deviation.copy_(raw.std(dim=0).clamp(min=_LEAST_DEVIATION))
    return network


def _all(images: ImageSet) -> Tensor:
    return torch.from_numpy(np.array(images.pixels))


if __name__ == "__main__":
    from effllm.stages.features import FeaturesStage

    main(FeaturesStage(), build)
