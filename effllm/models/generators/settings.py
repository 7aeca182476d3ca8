"""Settings of models that draw images and videos from text."""

from typing import Annotated, Any, Literal

from pydantic import Field

from effllm.fields import Dimension, NameIn, Section, Seed, Text
from effllm.models.generators import FAMILIES
from effllm.models.sources import HubModelSource, LocalModelSource


class TinyGenerator(Section):
    """A pipeline of some hundred thousand parameters, whose autoencoder and transformer have learned strokes.

    Its text encoders have random weights: they tell characters apart and know no language.
    """

    kind: Literal["tiny"]
    family: Annotated[str, NameIn(FAMILIES)] = Field(description="Family of the pipeline.")
    seed: Seed = Field(default=0, description="Seed of the weights.")


GeneratorSource = Annotated[HubModelSource | LocalModelSource | TinyGenerator, Field(discriminator="kind")]


class Generator(Section):
    """A pipeline of diffusers for images (SD3) or videos (Wan)."""

    label: Text | None = Field(default=None, description="Name in the tables; null prints the id.")
    source: GeneratorSource = Field(description="Where it comes from, by its kind.")
    text_tokens: Annotated[Dimension, Field(le=4096)] = Field(
        default=256, description="Tokens of a caption that the T5 encoder reads; Wan is trained with 512."
    )

    def spec(self) -> dict[str, Any]:
        """What decides the artifact."""
        return self.source.plain()
