"""Settings of sampling, of networks that give features, and of fidelity. Nothing here imports torch."""

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, field_validator

from effllm.diffusion.settings import Sampler
from effllm.fields import (
    Dimension,
    Float,
    Fraction,
    Id,
    LearningRate,
    PlainId,
    PositiveInt,
    SamplePeriod,
    Seconds,
    Section,
    Seed,
    Text,
    repeated,
)

LEAST_CLASSES, LEAST_SIZE = 2, 2
"""Of images that a network of kind trained learns to tell apart."""


def untold_by(classes: int) -> str:
    """What is said of images whose labels are too few for features of kind trained."""
    have = "have one label" if classes else "have no labels"
    return f"{have}, and the network learns to tell labels apart: name images with two or more, or take kind inception"


class SamplingProtocol(Section):
    """How images are sampled and measured: what a node's result depends on beside its model."""

    sampler: Sampler = Field(description="Sampler, steps and guidance.")
    images: Dimension = Field(description="Images for each seed, classes in turn; tables print it.")
    seeds: Annotated[list[Seed], Field(min_length=1)] = Field(
        default=[0], description="Seeds of the noise. Each gives `images` images, and fidelity a repeat."
    )
    batch_size: Dimension = Field(description="Images sampled together; changes images by rounding alone.")
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="Of the products; bfloat16 by autocast, as in training."
    )
    idle_s: Seconds = Field(
        default=5.0, description="Seconds of rest with the model loaded, before sampling: the baseline of power."
    )
    sample_period_s: SamplePeriod = Field(default=0.1, description="Period of the telemetry sampler in seconds.")

    @field_validator("seeds")
    @classmethod
    def _differ(cls, seeds: list[int]) -> list[int]:
        if twice := repeated(map(str, seeds)):
            raise ValueError(f"{', '.join(twice)} given twice: a seed is one repeat")
        return seeds


class Sampling(SamplingProtocol):
    """Images sampled from runs of diffusion, from all in the same way."""

    runs: Annotated[list[Id], Field(min_length=1)] = Field(description="Ids of the runs of diffusion.")

    @field_validator("runs")
    @classmethod
    def _name_each_once(cls, runs: list[str]) -> list[str]:
        if twice := repeated(runs):
            raise ValueError(f"{', '.join(map(repr, twice))} named twice: name a run once")
        return runs

    def protocol(self) -> dict[str, Any]:
        """All but the runs."""
        return {key: value for key, value in self.plain().items() if key != "runs"}


class TrainedFeatures(Section):
    """A small convolutional network trained here to tell the labels of images apart."""

    kind: Literal["trained"]
    images: Id = Field(description="Id of the images that it is trained on.")
    width: Dimension = Field(default=32, description="Features.")
    steps: PositiveInt = Field(default=600, description="Steps of AdamW.")
    batch_size: Dimension = Field(default=64, description="Images a step.")
    learning_rate: LearningRate = Field(default=3e-3, description="Its highest; it falls to zero by a cosine.")
    weight_decay: Fraction = Field(default=0.01, description="Of AdamW.")
    noise: Annotated[Float, Field(ge=0)] = Field(
        default=0.1, description="Deviation of the noise on the images that it learns, whose values are -1 to 1."
    )
    seed: Seed = Field(default=0, description="Of weights, order and noise.")


class InceptionFeatures(Section):
    """The 2,048 features of Inception v3 of 2015, by which published Frechet distances (FID) are computed."""

    kind: Literal["inception"]
    url: Text = Field(
        default="https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
        "weights-inception-2015-12-05-6726825d.pth",
        description="Address of the weights, in the layout of torch-fidelity and pytorch-fid.",
    )
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] = Field(
        default="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2", description="SHA-256 of the file."
    )


FeatureNetwork = Annotated[TrainedFeatures | InceptionFeatures, Field(discriminator="kind")]


class FidelityProtocol(Section):
    """How samples are compared with real images."""

    reference: Literal["train", "held_out"] = Field(
        default="train",
        description="Real images that samples are compared with: those that the run has learned, as published "
        "distances are, or those that it has not. The other part is compared with them too, as the floor.",
    )
    reference_images: Dimension | None = Field(
        default=None, description="So many of them, evenly over the part; null takes all."
    )
    neighbours: Dimension = Field(
        default=3, description="Nearest neighbours whose distance is a feature's radius, for precision and recall."
    )
    batch_size: Dimension = Field(default=256, description="Images that pass the network together.")


class Fidelity(FidelityProtocol):
    """How close sampled images come to real ones in the features of a network."""

    sampling: PlainId = Field(description="Id of the sampling whose images are compared, all its runs.")
    features: Id = Field(description="Id of the network that gives the features.")

    def protocol(self) -> dict[str, Any]:
        """All but the ids, which are inputs."""
        return {key: value for key, value in self.plain().items() if key not in ("sampling", "features")}
