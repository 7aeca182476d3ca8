"""Settings of latents."""

from typing import Annotated, Any, Literal

from pydantic import Field

from effllm.fields import Dimension, Id, Section, Seed
from effllm.models.sources import HubModelSource, LocalModelSource

AutoencoderSource = Annotated[HubModelSource | LocalModelSource, Field(discriminator="kind")]


class LatentsProtocol(Section):
    """How images are encoded, once."""

    posterior: Literal["sample", "mean"] = Field(
        default="sample",
        description="What stands for an image: a draw from its posterior, as diffusion is usually trained on, or the "
        "mean of it.",
    )
    mirrored: bool = Field(
        default=False, description="Encode the mirrored image too, for runs whose draws flip; twice the bytes."
    )
    seed: Seed = Field(default=0, description="Seed of the draws from posteriors.")
    batch_size: Dimension = Field(default=16, description="Images encoded together.")


class Latents(LatentsProtocol):
    """Latents of images by an autoencoder."""

    images: Id = Field(description="Id of the images that are encoded.")
    autoencoder: Id = Field(description="Id of the autoencoder.")

    def protocol(self) -> dict[str, Any]:
        """All but the ids, which are inputs."""
        return {key: value for key, value in self.plain().items() if key not in ("images", "autoencoder")}
