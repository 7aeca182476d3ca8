"""Settings of images."""

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from effllm.fields import Dimension, Fraction, Repository, Revision, Section, Text, ending_in

ImagePath = Annotated[Text, ending_in(".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")]


class DigitsSource(Section):
    """The 1,797 handwritten digits of 8 x 8 pixels that scikit-learn carries (UCI's optical recognition set)."""

    kind: Literal["digits"]


class FilesImageSource(Section):
    """Local files; an image's label is the name of the folder that it lies in."""

    kind: Literal["files"]
    paths: Annotated[list[ImagePath], Field(min_length=1)] = Field(
        description="Files or glob patterns, such as birds/*/*.png, read in sorted order."
    )


class ImageColumns(Section):
    """Columns of a dataset."""

    image: Text = Field(default="image", description="Column of the files: bytes, or a struct that has them.")
    label: Text | None = Field(
        default="label", description="Column of the labels, numbers or texts; null for images without."
    )


class HubImageSource(Section):
    """A dataset on the hub, read file by file, such as ILSVRC/imagenet-1k."""

    kind: Literal["hub"]
    repo: Repository = Field(description="Dataset repository on the hub.")
    name: Text | None = Field(default=None, description="Configuration of the dataset.")
    split: Text = Field(default="train", description="Split of the dataset.")
    revision: Revision = Field(description="Commit of the dataset repository, 40 hexadecimal digits.")
    columns: ImageColumns = Field(default_factory=ImageColumns, description="Which columns hold what.")


class NoiseSource(Section):
    """Random levels in place of images, or of an autoencoder's latents: to measure with, as nothing is learned."""

    kind: Literal["noise"]
    images: Dimension = Field(description="How many.")
    classes: Dimension = Field(description="Labels, which they have in turn.")


class Images(Section):
    """Images of one size, without duplicates, split by their content."""

    source: Annotated[DigitsSource | FilesImageSource | HubImageSource | NoiseSource, Field(discriminator="kind")] = (
        Field(description="Where the images come from, by its kind.")
    )
    size: Annotated[Dimension, Field(le=8192)] = Field(
        description="Height and width in pixels: images are scaled until the shorter side has them, and cropped."
    )
    crop: Literal["centre", "random"] = Field(
        default="centre", description="What is cropped: the middle, or a place that the hash of the pixels draws."
    )
    channels: Literal[1, 3, 4] = Field(
        default=3, description="1 for grey, 3 for red, green and blue; 4, as latents have, for noise alone."
    )
    held_out_fraction: Annotated[Fraction, Field(gt=0, lt=1)] = Field(
        description="Share of the images that no model is trained on."
    )

    @model_validator(mode="after")
    def _images_have_colours(self) -> "Images":
        if self.channels == 4 and not isinstance(self.source, NoiseSource):
            raise ValueError(f"channels: images of kind {self.source.kind} have 1 or 3, not 4")
        return self

    @model_serializer(mode="wrap")
    def _without_the_default_crop(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # As it was before there was the choice.
        return {key: value for key, value in serialize(self).items() if key != "crop" or value != "centre"}
