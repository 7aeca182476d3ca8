"""features.json, sample.json, records/sampling.json and fidelity.json of models of images."""

from typing import ClassVar, Literal

from pydantic import Field

from effllm.errors import Status
from effllm.results.base import Figures, Interval, Number, Part, ResultFile
from effllm.results.telemetry import DeviceInfo, Finding, TelemetrySummary


class FeaturesSummary(Figures, ResultFile):
    """A network that gives features of images."""

    FILE: ClassVar[str] = "features.json"

    kind: Literal["trained", "inception"] = Field(description="Trained here, or Inception v3.")
    width: int = Field(description="Features.")
    parameters: int = Field(description="All parameters.")
    channels: int | None = Field(description="Channels of the images that it takes; null: 1 or 3.")
    size: int | None = Field(description="Size of the images that it takes; null: any.")
    classes: list[str] | None = Field(description="The labels that it tells apart.")
    train_images: int | None = Field(description="Images that it was trained on.")
    held_out_images: int | None = Field(description="Images that it has not seen.")
    held_out_accuracy: float | None = Field(description="Share of these whose label it finds.")


class SampleSummary(Part, ResultFile):
    """Images that were sampled: `seed<seed>.images.bin`, as stage images writes them, and `seed<seed>.labels.npy`."""

    FILE: ClassVar[str] = "sample.json"

    images: int = Field(description="Images of each seed.")
    seeds: list[int] = Field(description="Seeds of the noise.")
    classes: int = Field(description="Labels, which the images have in turn.")
    size: int = Field(description="Height and width.")
    channels: int = Field(description="1 or 3.")
    sampler: str = Field(description="How: ddim, ddpm or euler.")
    steps: int = Field(description="Steps of the sampler.")
    guidance: float = Field(description="Classifier-free guidance; 1 is none.")
    evaluations_per_image: int = Field(description="Forward passes of the model for an image, guidance included.")


class SamplingCost(Figures, ResultFile):
    """What sampling costs, over the batches of the last process; null figures have their reasons."""

    FILE: ClassVar[str] = "records/sampling.json"

    status: Status = Field(description="ok, or why it must not be ranked.")
    reason: str | None = Field(description="The errors among the findings.")
    findings: list[Finding] = Field(description="What the plausibility rules say.")
    device: DeviceInfo = Field(description="What it ran on.")
    threads: int = Field(description="Threads of torch.")
    cpus_usable: int = Field(description="Cores that the process could use.")
    dtype: str = Field(description="Of the products.")
    batch_size: int = Field(description="Images sampled together.")
    images: int = Field(description="Images that were measured.")
    images_resumed: int = Field(description="Images that an earlier process had sampled, which are not measured.")
    seconds_per_image: float | None = Field(description="Time of the batches over their images, in s.")
    images_per_s: float | None = Field(description="Its reciprocal.")
    images_per_s_ci95: Interval | None = Field(description="Its 95 % interval over batches.")
    energy_j_per_image: float | None = Field(description="All energy of the batches, in J an image.")
    energy_above_idle_j_per_image: float | None = Field(description="What exceeds the idle device's power.")
    power_avg_w: float | None = Field(description="AEC: energy of the batches over their time.")
    memory_peak_gb: float | None = Field(
        description="The highest of the memory that it computes in: the device's allocator, on CPUs the process tree."
    )
    flops_per_image: Number | None = Field(description="Model FLOPs, all evaluations.")
    mfu: float | None = Field(description="FLOPs over time and the device's dense peak, a fraction.")
    idle: TelemetrySummary | None = Field(description="The device with the model loaded and nothing to do.")
    telemetry: TelemetrySummary | None = Field(description="Of the batches.")


class Distances(Figures):
    """How far one set of images is from the reference."""

    images: int = Field(description="Images of the set.")
    frechet_distance: float = Field(description="Frechet distance of the features' Gaussians; falls with more images.")
    kernel_distance: float = Field(description="KID: unbiased squared maximum mean discrepancy, cubic kernel.")
    kernel_distance_ci95: Interval = Field(description="Its 95 % interval by the jackknife over images of both sets.")
    precision: float = Field(description="Share of the set within the reference's manifold.")
    recall: float = Field(description="Share of the reference within the set's manifold.")
    label_agreement: float | None = Field(description="Share whose label the network of the features finds.")


class SeedDistances(Distances):
    """Those of one seed's samples."""

    seed: int = Field(description="Seed of the noise.")


class FidelityResult(Figures, ResultFile):
    """How close samples come to real images: means over seeds, and their 95 % intervals by Student's t."""

    FILE: ClassVar[str] = "fidelity.json"

    images: int = Field(description="Samples of each seed: distances of other numbers do not compare.")
    seeds: int = Field(description="Repeats.")
    reference: Literal["train", "held_out"] = Field(description="The real images.")
    reference_images: int = Field(description="How many.")
    neighbours: int = Field(description="Nearest neighbours of precision and recall.")
    features: str = Field(description="Id of the network.")
    features_kind: Literal["trained", "inception"] = Field(description="Trained here, or Inception v3.")
    features_width: int = Field(description="Features.")
    features_accuracy: float | None = Field(description="The network's accuracy on its held-out images.")
    frechet_distance: float = Field(description="Frechet distance (FID with kind inception).")
    frechet_distance_ci95: Interval | None = Field(description="Over seeds.")
    kernel_distance: float = Field(description="KID.")
    kernel_distance_ci95: Interval | None = Field(description="Over seeds.")
    precision: float = Field(description="Share of samples within the reference's manifold.")
    precision_ci95: Interval | None = Field(description="Over seeds.")
    recall: float = Field(description="Share of the reference within the samples' manifold.")
    recall_ci95: Interval | None = Field(description="Over seeds.")
    label_agreement: float | None = Field(description="Share of samples whose label the network finds.")
    label_agreement_ci95: Interval | None = Field(description="Over seeds.")
    by_seed: list[SeedDistances] = Field(description="Each repeat.")
    floor: Distances = Field(
        description="Real images of the other part against the same reference, at most as many as samples: what a "
        "perfect model would come to."
    )
    findings: list[Finding] = Field(description="What to know of the figures.")
