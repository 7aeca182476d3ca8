"""Stage `fidelity`: how close sampled images come to real ones, in the features of a network.

in:  sample, images (those of the run), features
out: fidelity.json (means over seeds with intervals, every seed, and real images as the floor)
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from effllm.data.images.store import ImageSet, open_split
from effllm.errors import CellFailure, UserError
from effllm.fidelity import metrics
from effllm.fidelity.networks import Features, load_network
from effllm.fidelity.settings import FidelityProtocol
from effllm.fields import shortened
from effllm.results.fidelity import Distances, FeaturesSummary, FidelityResult, SampleSummary, SeedDistances
from effllm.results.telemetry import Finding
from effllm.runtime.stage import Job, main
from effllm.telemetry.metrics import mean_ci95

_SHARES = ("precision", "recall", "label_agreement")
_FIGURES = ("frechet_distance", "kernel_distance", *_SHARES)
# Images that a jackknife of pairs needs.
_LEAST_IMAGES = 3


def build(job: Job) -> None:
    """Compare each seed's samples, and the real images of the other part, with the reference."""
    protocol = job.config(FidelityProtocol)
    samples = SampleSummary.read(job.inputs["sample"].directory)
    network = FeaturesSummary.read(job.inputs["features"].directory)
    _require_fit(job, network, samples)
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    # Convolutions in float32 and not in the GPU's TensorFloat-32, by the same kernels each time.
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = False, True
    try:
        _compare(job, protocol, samples, network, device)
    except torch.cuda.OutOfMemoryError:
        raise UserError(
            f"fidelity {job.id}: the memory of {device} ran out with batch_size {protocol.batch_size}: lower it, or "
            "reference_images."
        ) from None


def _compare(
    job: Job, protocol: FidelityProtocol, samples: SampleSummary, network: FeaturesSummary, device: str
) -> None:
    images = job.inputs["images"].directory
    reference = ImageSet(images, protocol.reference)
    other = ImageSet(images, "held_out" if protocol.reference == "train" else "train")
    compared = _Compared(job, protocol, device, reference, is_labelled=network.classes == reference.classes)
    by_seed = []
    for seed in samples.seeds:
        pixels, labels = open_split(job.inputs["sample"].directory, f"seed{seed}", samples.channels, samples.size)
        by_seed.append(SeedDistances(seed=seed, **compared.distances(pixels, labels)))
    chosen = _evenly(len(other), min(len(other), samples.images))
    floor = Distances(**compared.distances(other.pixels[chosen], other.labels[chosen]))
    job.write(
        FidelityResult(
            images=samples.images,
            seeds=len(samples.seeds),
            reference=protocol.reference,
            reference_images=len(compared.reference),
            neighbours=protocol.neighbours,
            features=job.inputs["features"].manifest.id,
            features_kind=network.kind,
            features_width=network.width,
            features_accuracy=network.held_out_accuracy,
            by_seed=by_seed,
            floor=floor,
            findings=[
                *_findings(samples, len(compared.reference), floor.images, network.width),
                *_unlearned(samples, reference if protocol.reference == "train" else other),
            ],
            **_over_seeds(by_seed),
        )
    )


class _Compared:
    """Distances from the reference, whose features are computed once."""

    def __init__(self, job: Job, protocol: FidelityProtocol, device: str, reference: ImageSet, is_labelled: bool):
        self._protocol, self._device, self._is_labelled = protocol, device, is_labelled
        self._network: Features = load_network(job.inputs["features"], device)
        count = min(len(reference), protocol.reference_images or len(reference))
        _require_images(job, f"the {protocol.reference} images", count, protocol)
        self.reference = self._features(reference.pixels[_evenly(len(reference), count)])[0]
        self._job = job

    def distances(self, pixels: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
        """The fields of `Distances` of a set of images."""
        _require_images(self._job, "the compared images", len(pixels), self._protocol)
        features, found = self._features(pixels)
        if not features.isfinite().all():
            raise CellFailure("nan", "features of the samples are not finite")
        distance, error = metrics.kernel_distance(features, self.reference)
        precision, recall = metrics.precision_and_recall(features, self.reference, self._protocol.neighbours)
        agreement = None
        if self._is_labelled and found is not None:
            agreement = float((found == torch.from_numpy(np.array(labels, dtype=np.int64))).double().mean())
        why = "the network does not tell the labels of these images apart"
        return {
            "images": len(pixels),
            "frechet_distance": metrics.frechet_distance(features, self.reference),
            "kernel_distance": distance,
            "kernel_distance_ci95": metrics.interval(distance, error),
            "precision": precision,
            "recall": recall,
            "label_agreement": agreement,
            "reasons": {} if agreement is not None else {"label_agreement": why},
        }

    @torch.inference_mode()
    def _features(self, pixels: np.ndarray) -> tuple[Tensor, Tensor | None]:
        features, labels = [], []
        for start in range(0, len(pixels), self._protocol.batch_size):
            batch = torch.from_numpy(np.array(pixels[start : start + self._protocol.batch_size])).to(self._device)
            features.append(self._network.features(batch))
            if self._is_labelled and (found := self._network.labels(batch)) is not None:
                labels.append(found.cpu())
        return torch.cat(features), torch.cat(labels) if labels else None


def _evenly(count: int, taken: int) -> np.ndarray:
    """So many numbers below `count`, evenly: images of a folder lie together."""
    return np.linspace(0, count - 1, taken).round().astype(np.int64)


def _over_seeds(by_seed: Sequence[SeedDistances]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    for name in _FIGURES:
        values = [value for each in by_seed if (value := getattr(each, name)) is not None]
        mean, low, high = mean_ci95(values) if values else (None, None, None)
        if low is not None and high is not None and name in _SHARES:
            low, high = max(0.0, low), min(1.0, high)
        found |= {name: mean, f"{name}_ci95": None if low is None else [low, high]}
        if not values:
            reasons |= dict.fromkeys((name, f"{name}_ci95"), str(by_seed[0].cell(name)[1]))
        elif low is None:
            reasons[f"{name}_ci95"] = "one seed has no interval"
    return found | {"reasons": reasons}


def _require_fit(job: Job, network: FeaturesSummary, samples: SampleSummary) -> None:
    for what, theirs, own in (
        ("channels", network.channels, samples.channels),
        ("size", network.size, samples.size),
    ):
        if theirs not in (None, own):
            raise UserError(
                f"fidelity {job.id}: its features take images of {what} {theirs}, the samples have {own}: name "
                "features that are trained on the run's images."
            )


def _require_images(job: Job, what: str, count: int, protocol: FidelityProtocol) -> None:
    least = max(_LEAST_IMAGES, protocol.neighbours + 1)
    if count < least:
        raise UserError(
            f"fidelity {job.id}: {what} are {count}, and {least} are needed with neighbours {protocol.neighbours}: "
            "lower it, or take more images."
        )


def _findings(samples: SampleSummary, reference: int, floor: int, width: int) -> list[Finding]:
    findings = []
    for what, count in (("samples", samples.images), ("real images", reference)):
        if count <= width:
            message = (
                f"{count} {what} are not more than the {width} features: their covariance is singular, and the Frechet "
                "distance mostly tells of their number"
            )
            findings.append(Finding("few_images", "warning", message))
    if floor < samples.images:
        message = f"the floor is of {floor} real images, fewer than the {samples.images} samples, so it is too high"
        findings.append(Finding("floor", "warning", message))
    return findings


def _unlearned(samples: SampleSummary, learned: ImageSet) -> list[Finding]:
    known = set(np.unique(learned.labels).tolist())
    missing = [name for label, name in enumerate(learned.classes) if label not in known]
    if not missing or samples.classes == 0:
        return []
    message = (
        f"{len(missing)} of {samples.classes} labels, {shortened(missing)}, have no image for training, and samples of "
        "them are of nothing that was learned"
    )
    return [Finding("unlearned_labels", "warning", message)]


if __name__ == "__main__":
    from effllm.stages.fidelity import FidelityStage

    main(FidelityStage(), build)
