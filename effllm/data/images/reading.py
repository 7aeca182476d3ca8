"""Images out of files and packages, scaled and cropped to one size; what cannot be one is told apart by its reason."""

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
import xxhash
from PIL import ExifTags, Image, ImageOps

from effllm.data.images.settings import DigitsSource, HubImageSource, Images, NoiseSource

Picture: TypeAlias = Path | BytesIO | Image.Image | np.ndarray
"""A file, what is in one, a picture, or its pixels as they are kept."""

# Levels of scikit-learn's digits.
_DIGIT_LEVELS = 16
# Colours of 16 bits as Pillow's decoders name them; BGR;16 is a pixel of 16 bits.
_DEEP = re.compile(r";16[BLN]")
# Sides of an image that is scaled, long to short.
_NARROW = 8


class UnusableImageError(Exception):
    """An image that cannot be used; the message is the reason under which it is counted.

    unreadable: damaged, cut short or no image. huge: more pixels than Pillow takes for sound. deep: more than 8 bits a
    channel. unlabelled: a row of a dataset whose label is missing or negative.
    """


# Of all sources: unlabelled is counted where it occurs.
REASONS = ("unreadable", "huge", "deep")
ODD = ("turned", "animated", "transparent", "palette", "print", "enlarged")
"""What images are that need more than scaling: of a camera held sideways, of several frames, with transparency, with a
table of colours, in printer's colours, smaller than asked for."""


class ImageSource(Protocol):
    """Names of classes, and pictures each with its name and its class."""

    label: str
    classes: list[str]
    """Known once all pictures were read."""

    def pictures(self) -> "Iterator[tuple[str, int, Picture]]": ...


class Digits:
    """scikit-learn's digits."""

    label = "scikit-learn's digits"
    classes = [str(digit) for digit in range(10)]  # noqa: RUF012  (of the protocol)

    def __init__(self) -> None:
        # A second that other sources need not pay.
        from sklearn.datasets import load_digits

        self._data = load_digits()

    def pictures(self) -> Iterator[tuple[str, int, Picture]]:
        """In the package's order."""
        levels = (self._data.images * (255 / _DIGIT_LEVELS)).round().astype(np.uint8)
        for index, (picture, digit) in enumerate(zip(levels, self._data.target, strict=True)):
            yield f"digit {index}", int(digit), Image.fromarray(picture)


class Files:
    """Files by their paths."""

    def __init__(self, files: Mapping[str, Path]):
        self._paths = list(files.values())
        self.classes = sorted({path.parent.name for path in self._paths})
        self.label = f"{len(self._paths)} files"

    def pictures(self) -> Iterator[tuple[str, int, Picture]]:
        """In the order of their paths."""
        number = {name: index for index, name in enumerate(self.classes)}
        for path in self._paths:
            yield str(path), number[path.parent.name], path


class Noise:
    """Uniform levels, the same for one number of channels and size."""

    label = "noise"

    def __init__(self, source: NoiseSource, channels: int, size: int):
        self.classes = [str(number) for number in range(source.classes)]
        self._count, self._shape = source.images, (channels, size, size)

    def pictures(self) -> Iterator[tuple[str, int, Picture]]:
        """As drawn."""
        drawn = np.random.default_rng(0)
        for index in range(self._count):
            yield f"noise {index}", index % len(self.classes), drawn.integers(0, 256, self._shape, np.uint8)


def open_source(images: Images, files: Mapping[str, Path], scratch: Path) -> ImageSource:
    """What a study names; downloads go to `scratch`."""
    source = images.source
    if isinstance(source, NoiseSource):
        return Noise(source, images.channels, images.size)
    if isinstance(source, HubImageSource):
        # The hub's libraries take seconds to import.
        from effllm.data.images.hub import HubImages

        return HubImages(source, scratch)
    return Digits() if isinstance(source, DigitsSource) else Files(files)


def opened(picture: Path | BytesIO | Image.Image, channels: int) -> tuple[Image.Image, Image.Image]:
    """The image turned as the camera says, grey or in colours, and as it was opened; of an animation the first frame.

    Raises `UnusableImageError`, for one of too many pixels before any is decoded; the operating system's own errors
    (rights, a vanished file) pass.
    """
    with _damage_is_unreadable(), warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        source = picture if isinstance(picture, Image.Image) else Image.open(picture)
        if source.mode.startswith(("I", "F")) or _is_deep(source):
            raise UnusableImageError("deep")
        return ImageOps.exif_transpose(source).convert("L" if channels == 1 else "RGB"), source


def _is_deep(image: Image.Image) -> bool:
    """Whether a file has 16 bits of each colour, of which Pillow would drop the lower half without a word."""
    arguments = [tile[3] for tile in getattr(image, "tile", ())]
    modes = [found if isinstance(found, str) else found[0] for found in arguments if found]
    return any(_DEEP.search(str(mode)) for mode in modes)


@contextmanager
def _damage_is_unreadable() -> Iterator[None]:
    try:
        yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UnusableImageError("huge") from None
    except UnusableImageError:
        raise
    # Decoders answer damaged files by errors of many types.
    except Exception as error:
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno):
            raise
        raise UnusableImageError("unreadable") from None


def scaled(image: Image.Image, width: int, height: int) -> Image.Image:
    """The image scaled until it covers the shape, as in DiT's recipe: halved by boxes while it has twice both sides,
    then bicubic.
    """
    while image.width >= 2 * width and image.height >= 2 * height:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    # Of a narrow strip the middle: all of it, scaled to that height, may not fit into memory.
    wide, high = (min(side, _NARROW * min(image.size)) for side in image.size)
    left, top = (image.width - wide) // 2, (image.height - high) // 2
    image = image.crop((left, top, left + wide, top + high))
    scale = max(width / image.width, height / image.height)
    if scale == 1:
        return image
    size = max(width, round(image.width * scale)), max(height, round(image.height * scale))
    return image.resize(size, Image.Resampling.BICUBIC)


def pixels(picture: Picture, size: int, channels: int, crop: str = "centre") -> tuple[np.ndarray, list[str]]:
    """uint8 [channels, size, size], and what of `ODD` the picture is; transparency is dropped.

    Raises `UnusableImageError`, as `opened` does.
    """
    if isinstance(picture, np.ndarray):
        return picture, []
    image, source = opened(picture, channels)
    odd = oddities(source, size)
    image = scaled(image, size, size)
    left, top = image.width - size, image.height - size
    if crop == "random":
        place = xxhash.xxh3_64_intdigest(np.asarray(image).tobytes())
        left, top = place % (left + 1), (place >> 32) % (top + 1)
    else:
        left, top = left // 2, top // 2
    array = np.asarray(image.crop((left, top, left + size, top + size)))
    return (array[None] if channels == 1 else np.ascontiguousarray(array.transpose(2, 0, 1))), odd


def oddities(image: Image.Image, size: int) -> list[str]:
    """What of `ODD` an opened image is, of which `size` pixels a side are wanted."""
    # Whether a file has a second frame is known by reading on, where it may be cut.
    with _damage_is_unreadable():
        found = {
            "turned": image.getexif().get(ExifTags.Base.Orientation, 1) != 1,
            "animated": getattr(image, "is_animated", False),
            "transparent": image.has_transparency_data,
            "palette": image.mode in ("P", "PA"),
            "print": image.mode == "CMYK",
            "enlarged": min(image.size) < size,
        }
    return [name for name in ODD if found[name]]
