"""Images of instruction data: read and checked once, kept as files in `images.bin`, opened again when they are used."""

import os
from base64 import b64decode
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeAlias
from urllib.parse import unquote, urlsplit

import xxhash
from PIL import Image

from effllm.data.images.reading import REASONS, UnusableImageError, oddities, opened
from effllm.data.instructions.settings import Columns
from effllm.data.instructions.turns import images_of
from effllm.data.sampling import SPLIT_SALT
from effllm.data.writing import PieceWriter
from effllm.errors import UserError

FILE = "images.bin"
UNUSABLE = ("no_image", *REASONS, "tiny", "narrow")
"""no_image: the row names none, or one that is not there. The others are those of stage `images`. tiny: one pixel high
or wide. narrow: its sides are 200 to 1 or more, which Qwen's processor refuses. Beside them `several`, where it occurs:
the row has more than one image."""
_NARROW = 200
# Of what a row has in the place of a path.
_LONGEST_NAME = 200

PictureFile: TypeAlias = Path | bytes
"""An image as rows have it: a file, or what is in one."""


class NoPicture(NamedTuple):
    """Why a row has no image, and what it names in its place, if anything."""

    reason: str
    named: str = ""


class Row(NamedTuple):
    """A row of a dataset, and its image, where rows have one."""

    values: Mapping[str, Any]
    picture: PictureFile | NoPicture | None = None


@dataclass(frozen=True)
class Picture:
    """An image in `images.bin`: where its file is, and its width and height once it is turned."""

    KEYS: ClassVar = ("offset", "bytes", "width", "height")

    offset: int
    bytes: int
    width: int
    height: int


class PictureWriter(PieceWriter):
    """Appends files of images to `images.bin` of an artifact; one with pixels that came before is kept once."""

    def __init__(self, directory: Path):
        super().__init__(directory / FILE)
        self._known: dict[bytes, Picture] = {}
        self.odd: Counter[str] = Counter()
        """Of the images that are kept, what was done without, as of `oddities`."""

    @property
    def count(self) -> int:
        """Images so far, each once."""
        return len(self._known)

    def write(self, file: PictureFile | NoPicture) -> tuple[bytes, Picture]:
        """The digest of the pixels, and where the file is kept; `UnusableImageError` for one that no model can read."""
        if isinstance(file, NoPicture):
            raise UnusableImageError(file.reason)
        content = file.read_bytes() if isinstance(file, Path) else file
        image, source = opened(BytesIO(content), 3)
        odd = oddities(source, 0)
        if min(image.size) < 2:
            raise UnusableImageError("tiny")
        if max(image.size) >= _NARROW * min(image.size):
            raise UnusableImageError("narrow")
        shape = b"%d %d " % image.size
        digest = xxhash.xxh3_128_digest(shape + image.tobytes(), SPLIT_SALT)
        if digest not in self._known:
            self._known[digest] = Picture(self.append(content), len(content), *image.size)
            self.odd.update(odd)
        return digest, self._known[digest]


class PictureReader:
    """Opens the images of an artifact again."""

    def __init__(self, directory: Path):
        self._path = directory / FILE
        if not self._path.is_file():
            raise UserError(f"{self._path} does not exist: delete {directory} and run again to rebuild it.")

    def read(self, picture: Picture) -> Image.Image:
        """The image in colours, turned as the camera says."""
        with open(self._path, "rb") as file:
            file.seek(picture.offset)
            return opened(BytesIO(file.read(picture.bytes)), 3)[0]

    @staticmethod
    def blank(picture: Picture) -> Image.Image:
        """One of the same size that shows nothing, all grey."""
        return Image.new("RGB", (picture.width, picture.height), (128, 128, 128))


def place_of(path: Path) -> str:
    """A path by which a row and the study's list of images name the same file, links left as they are."""
    return os.path.abspath(path)  # noqa: PTH100  (`resolve` follows links)


def with_picture(
    row: Mapping[str, Any], columns: Columns, files: Mapping[str, Path] | None = None, folder: Path | None = None
) -> Row:
    """The row with the image that its column holds or names, or that a part of its conversation does.

    `files` are the images that the study names, by their absolute paths; `folder` is where relative paths go from.
    """
    if columns.image is None:
        return Row(row)
    value = row.get(columns.image)
    if columns.image in columns.names():
        value = images_of(value)
    if isinstance(value, list):
        if len(value) > 1:
            return Row(row, NoPicture("several"))
        value = value[0] if value else None
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path") or value.get("url")
    if not isinstance(value, str):
        return Row(row, value if isinstance(value, bytes) and value else NoPicture("no_image"))
    return Row(row, _named_file(value, files or {}, folder) or NoPicture("no_image", value[:_LONGEST_NAME]))


def _named_file(name: str, files: Mapping[str, Path], folder: Path | None) -> PictureFile | None:
    """What a path names of the files of the study, or what a data URL holds."""
    if name.startswith("data:"):
        form, _, content = name.partition(",")
        try:
            return b64decode(content, validate=True) if form.endswith(";base64") else None
        except ValueError:
            return None
    if name.startswith("file:"):
        name = unquote(urlsplit(name).path)
    # A path that no file system can hold is none of them.
    return None if folder is None or "\0" in name else files.get(place_of(folder / name))
