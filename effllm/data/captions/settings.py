"""Settings of images and clips with captions."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from effllm.fields import Fraction, PositiveInt, Repository, Revision, Section, Text, repeated

Shape = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,4}x[1-9][0-9]{0,4}$", description="Width x height in pixels.")]


class DigitsWithCaptions(Section):
    """scikit-learn's digits with captions such as "a drawing of the digit seven"; in a clip they move to the right."""

    kind: Literal["digits"]


class FilesWithCaptions(Section):
    """Image files and, for each, a .txt of the same name with its caption.

    A clip is a video such as an MP4 with a .txt of its name, or an animated GIF, WebP or PNG; or a folder of its
    frames, in the order of their names, with a .txt of the folder's name beside it.
    """

    kind: Literal["files"]
    paths: Annotated[list[Text], Field(min_length=1)] = Field(
        description="Files or glob patterns, such as art/**/*, read in sorted order; files of other kinds are counted."
    )


class HubFilesWithCaptions(Section):
    """The same files in a dataset repository of the hub, such as sayakpaul/video-dataset-disney-organized."""

    kind: Literal["hub_files"]
    repo: Repository = Field(description="Dataset repository on the hub.")
    revision: Revision = Field(description="Commit of the dataset repository, 40 hexadecimal digits.")
    paths: Annotated[list[Text], Field(min_length=1)] = Field(
        default=["*"], description="Patterns of the paths in the repository; * crosses folders."
    )


class CaptionColumns(Section):
    """Columns of a dataset."""

    image: Text = Field(default="image", description="Column of the files: bytes, or a struct that has them.")
    caption: Text = Field(default="text", description="Column of the captions: texts, or classes, by their names.")


class HubRowsWithCaptions(Section):
    """A dataset on the hub with an image and its caption in each row."""

    kind: Literal["hub"]
    repo: Repository = Field(description="Dataset repository on the hub.")
    name: Text | None = Field(default=None, description="Configuration of the dataset.")
    split: Text = Field(default="train", description="Split of the dataset.")
    revision: Revision = Field(description="Commit of the dataset repository, 40 hexadecimal digits.")
    columns: CaptionColumns = Field(default_factory=CaptionColumns, description="Which columns hold what.")
    where: dict[Text, Text] = Field(
        default_factory=dict,
        description="Rows that are taken, by texts, or names of classes, in their columns, such as "
        "{artist: john-singer-sargent}.",
    )


HubSource = HubRowsWithCaptions | HubFilesWithCaptions


class Captions(Section):
    """Images or clips with captions, without duplicates, split by their content."""

    source: Annotated[DigitsWithCaptions | FilesWithCaptions | HubSource, Field(discriminator="kind")] = Field(
        description="Where they come from, by its kind."
    )
    shapes: Annotated[list[Shape], Field(min_length=1)] = Field(
        description="Shapes to which images are scaled and cropped, such as [1024x1024, 832x1216]: each image takes "
        "the one whose ratio of width to height is nearest."
    )
    frames: PositiveInt = Field(default=1, description="Frames of a clip, the first ones; 1 is an image.")
    every: PositiveInt = Field(default=1, description="Take every so-many-th frame of a clip.")
    held_out_fraction: Annotated[Fraction, Field(gt=0, lt=1)] = Field(
        description="Share of the samples that no model is trained on."
    )

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(width, height) of each shape."""
        return [(int(width), int(height)) for width, height in (shape.split("x") for shape in self.shapes)]

    @model_validator(mode="after")
    def _has_sane_shapes(self) -> "Captions":
        if twice := repeated(self.shapes):
            raise ValueError(f"shapes: {', '.join(twice)} is listed twice; list it once")
        for (width, height), shape in zip(self.sizes, self.shapes, strict=True):
            if max(width, height) > 8 * min(width, height):
                raise ValueError(f"shapes: {shape} is a strip; its longer side may have eight times the shorter one")
        if self.frames > 1 and isinstance(self.source, HubRowsWithCaptions):
            raise ValueError(
                f"frames: {self.frames} are a clip, and rows of the hub have images: write 1, or hub_files"
            )
        if self.frames == 1 and self.every > 1:
            raise ValueError(f"every: {self.every} skips frames, and an image has one: drop it, or give frames")
        return self
