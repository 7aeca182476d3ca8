"""Settings of images."""

from typing import Annotated, Literal

from pydantic import Field

from effllm.fields import Dimension, Fraction, Section, Text, ending_in

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


class Images(Section):
    """Images of one size, without duplicates, split by their content."""

    source: Annotated[DigitsSource | FilesImageSource, Field(discriminator="kind")] = Field(
        description="Where the images come from, by its kind."
    )
    size: Dimension = Field(
        description="Height and width in pixels: images are scaled until the shorter side has them, and cropped around "
        "the centre."
    )
    channels: Literal[1, 3] = Field(default=3, description="1 for grey, 3 for red, green and blue.")
    held_out_fraction: Annotated[Fraction, Field(gt=0, lt=1)] = Field(
        description="Share of the images that no model is trained on."
    )
