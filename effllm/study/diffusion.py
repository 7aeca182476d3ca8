"""What runs of diffusion need of the rest of a study; ValueError with the key, the value and the remedy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from effllm.data.images.settings import DigitsSource, HubImageSource, Images, NoiseSource
from effllm.diffusion.settings import check_sampler
from effllm.fidelity.settings import LEAST_CLASSES, LEAST_SIZE, TrainedFeatures, untold_by
from effllm.fields import require

if TYPE_CHECKING:
    from effllm.study.study import Study

_DIGITS = 10


def check_diffusion(study: Study) -> None:
    """Images are there, and are what the model generates; samples are what can be had from it and compared."""
    for id in study.latents:
        _check_latents(study, id)
    for id, run in study.diffusion.items():
        where, shape = f"diffusion.{id}.architecture", run.architecture
        require(f"diffusion.{id}.images", run.images, {**study.images, **study.latents})
        classes = _classes_of(study.images[study.images_behind(id)])
        if classes not in (None, shape.classes):
            raise ValueError(
                f"{where}.classes: {shape.classes} is not the {classes} of {study.images_behind(id)!r}: write {classes}"
            )
        if run.images in study.latents:
            _check_run_on_latents(study, id)
            continue
        images = study.images[run.images]
        for key, own, theirs in (
            ("image_size", shape.image_size, images.size),
            ("channels", shape.channels, images.channels),
        ):
            if own != theirs:
                raise ValueError(f"{where}.{key}: {own} is not the {theirs} of {run.images!r}: change one of them")
    for id in study.sampling:
        _check_sampling(study, id)
    for id, network in study.features.items():
        if isinstance(network, TrainedFeatures):
            require(f"features.{id}.images", network.images, study.images)
            _check_learned(f"features.{id}.images", network.images, study.images[network.images])
    for id in study.fidelity:
        _check_fidelity(study, id)


def _classes_of(images: Images) -> int | None:
    """Labels, where they are known before the images are read."""
    source = images.source
    if isinstance(source, HubImageSource):
        return 0 if source.columns.label is None else None
    if isinstance(source, NoiseSource):
        return source.classes
    return _DIGITS if isinstance(source, DigitsSource) else None


def _check_learned(where: str, id: str, images: Images) -> None:
    if (classes := _classes_of(images)) is not None and classes < LEAST_CLASSES:
        raise ValueError(f"{where}: {id!r} {untold_by(classes)}")
    if images.size < LEAST_SIZE:
        raise ValueError(
            f"{where}: {id!r} are of size {images.size}, and the network halves images: take {LEAST_SIZE} at least"
        )


def _check_latents(study: Study, id: str) -> None:
    latents, where = study.latents[id], f"latents.{id}"
    if id in study.images:
        raise ValueError(f"{where}: images have this id too, and a run could mean either: rename one of them")
    require(f"{where}.images", latents.images, study.images)
    require(f"{where}.autoencoder", latents.autoencoder, study.autoencoders)
    if isinstance(study.images[latents.images].source, NoiseSource):
        raise ValueError(f"{where}.images: {latents.images!r} are noise: train on them without an autoencoder")


def _check_run_on_latents(study: Study, id: str) -> None:
    """What can be said before the autoencoder is there; stage diffuse compares shapes."""
    run = study.diffusion[id]
    images = study.images[study.images_behind(id)]
    if images.size % run.architecture.image_size:
        raise ValueError(
            f"diffusion.{id}.architecture.image_size: {run.architecture.image_size} divides no side of {images.size} "
            f"pixels, which the images behind {run.images!r} have: write the side of their latents"
        )
    if run.draws.flip and not study.latents[run.images].mirrored:
        raise ValueError(
            f"diffusion.{id}.draws.flip: {run.images!r} has no mirrored images, whose latents are not the mirrored "
            f"latents: write latents.{run.images}.mirrored: true"
        )


def _check_sampling(study: Study, id: str) -> None:
    sampling, where = study.sampling[id], f"sampling.{id}"
    for name in sampling.runs:
        require(f"{where}.runs", name, study.diffusion)
        run = study.diffusion[name]
        if isinstance(study.images[study.images_behind(name)].source, NoiseSource):
            raise ValueError(f"{where}.runs: {name!r} is trained on noise and keeps no weights: name another run")
        if misfit := check_sampler(sampling.sampler, run.objective):
            raise ValueError(f"{where}.sampler: {misfit}")
        if sampling.sampler.clip and run.images in study.latents:
            raise ValueError(
                f"{where}.sampler.clip: {name!r} draws latents, which are not between -1 and 1: write clip: false"
            )
        if sampling.sampler.guidance != 1 and run.architecture.classes == 0:
            raise ValueError(
                f"{where}.sampler.guidance: {sampling.sampler.guidance:g} needs labels, and the images of {name!r} "
                "have none: write 1"
            )
        if sampling.sampler.guidance != 1 and run.draws.label_dropout == 0:
            raise ValueError(
                f"{where}.sampler.guidance: {sampling.sampler.guidance:g} needs images without a label, which {name!r} "
                f"has not learned: write 1, or diffusion.{name}.draws.label_dropout 0.1"
            )
        if sampling.images < run.architecture.classes:
            raise ValueError(
                f"{where}.images: {sampling.images} is less than the {run.architecture.classes} classes of {name!r}: "
                "take at least one of each"
            )


def _check_fidelity(study: Study, id: str) -> None:
    fidelity, where = study.fidelity[id], f"fidelity.{id}"
    require(f"{where}.sampling", fidelity.sampling, study.sampling)
    require(f"{where}.features", fidelity.features, study.features)
    sampling, network = study.sampling[fidelity.sampling], study.features[fidelity.features]
    for key, count in (("images", sampling.images), ("reference_images", fidelity.reference_images)):
        if count is not None and count <= fidelity.neighbours:
            place = f"sampling.{fidelity.sampling}.images" if key == "images" else f"{where}.{key}"
            raise ValueError(
                f"{where}.neighbours: {fidelity.neighbours} need more images than the {count} of {place}: lower it"
            )
    if not isinstance(network, TrainedFeatures):
        return
    own = study.images[network.images]
    for name in sampling.runs:
        theirs = study.images[study.images_behind(name)]
        if (own.size, own.channels) != (theirs.size, theirs.channels):
            raise ValueError(
                f"{where}.features: {fidelity.features!r} is trained on images of size {own.size} and {own.channels} "
                f"channels, {name!r} on size {theirs.size} and {theirs.channels}: name features of the same images"
            )
