"""Samples with their captions out of files and packages; what cannot be one is told apart by its reason."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from effllm.data.captions.settings import Captions, DigitsWithCaptions
from effllm.data.images.reading import Digits, UnusableImageError, opened, scaled

REASONS = (
    "unreadable",
    "huge",
    "deep",
    "without_image",
    "without_caption",
    "without_frames",
    "empty_caption",
    "unreadable_caption",
    "short",
    "video",
    "other",
)
"""Why files make no sample. The first three are those of images; a caption may be without its image, or its clip
without frames; a clip may be shorter than asked for; a video is in a format that Pillow does not read; other files are
neither.
"""
_IMAGES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".apng"})
_VIDEOS = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg"})
_CAPTION = ".txt"
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class Found:
    """What may be a sample: its name, its caption, and its frames in their order; or the reason why it is none."""

    name: str
    caption: str | Path = ""
    frames: Sequence[Path | Image.Image] = ()
    reason: str | None = None


class CaptionSource(Protocol):
    """Where samples come from."""

    label: str

    def found(self) -> Iterator[Found]: ...


def open_source(config: Captions, files: Mapping[str, Path]) -> CaptionSource:
    """What a study names."""
    if isinstance(config.source, DigitsWithCaptions):
        return _Digits((config.frames - 1) * config.every + 1)
    return _Files(files, is_clip=config.frames > 1)


class _Digits:
    """A digit that moves a pixel to the right from frame to frame, and comes in again on the left."""

    def __init__(self, frames: int):
        self._digits, self._frames = Digits(), frames
        self.label = self._digits.label

    def found(self) -> Iterator[Found]:
        caption = "the digit {} moves to the right" if self._frames > 1 else "a drawing of the digit {}"
        for name, digit, picture in self._digits.pictures():
            # Dark strokes on white, so that pixels beyond the drawing are paper.
            levels = 255 - np.asarray(picture)
            frames = [Image.fromarray(np.roll(levels, shift, axis=1)) for shift in range(self._frames)]
            yield Found(name, caption.format(_NUMBERS[digit]), frames)


class _Files:
    """Files by their paths."""

    def __init__(self, files: Mapping[str, Path], is_clip: bool):
        self._paths, self._is_clip = sorted(files.values()), is_clip
        self.label = f"{len(self._paths)} files"

    def found(self) -> Iterator[Found]:
        """Samples in the order of their captions' paths; before them files that make none."""
        captions = {path.with_suffix(""): path for path in self._paths if path.suffix.lower() == _CAPTION}
        frames: dict[Path, list[Path]] = defaultdict(list)
        for path in self._paths:
            suffix = path.suffix.lower()
            if suffix in _IMAGES:
                own = path.with_suffix("")
                if own not in captions and path.parent not in captions:
                    yield Found(str(path), reason="without_caption")
                frames[own if own in captions else path.parent].append(path)
            elif suffix in _VIDEOS:
                yield Found(str(path), reason="video")
                captions.pop(path.with_suffix(""), None)
            elif suffix != _CAPTION:
                yield Found(str(path), reason="other")
        absent = "without_frames" if self._is_clip else "without_image"
        for own, caption in captions.items():
            yield Found(str(caption), caption, frames[own], None if frames[own] else absent)


def caption_of(found: Found) -> str:
    """The caption on one line; `UnusableImageError` for one that is empty or no text."""
    try:
        text = found.caption.read_text("utf-8-sig") if isinstance(found.caption, Path) else found.caption
    except UnicodeDecodeError:
        raise UnusableImageError("unreadable_caption") from None
    text = " ".join(text.split())
    if not text:
        raise UnusableImageError("empty_caption")
    return text


def pixels_of(found: Found, config: Captions) -> np.ndarray:
    """uint8 [frames, 3, height, width] in the shape whose ratio is nearest to that of the first frame.

    Raises `UnusableImageError`; the operating system's own errors pass.
    """
    pictures = [opened(picture, 3)[0] for picture in _frames(found.frames, config)]
    first = math.log(pictures[0].width / pictures[0].height)
    width, height = min(config.sizes, key=lambda size: abs(math.log(size[0] / size[1]) - first))
    return np.stack([_cropped(picture, width, height) for picture in pictures])


def _frames(pictures: Sequence[Path | Image.Image], config: Captions) -> Sequence[Path | Image.Image]:
    """As many as asked for: of a folder, or of one animated file."""
    wanted = range(0, config.frames * config.every, config.every)
    if len(pictures) > wanted[-1]:
        return [pictures[number] for number in wanted]
    if len(pictures) > 1 or not isinstance(pictures[0], Path):
        raise UnusableImageError("short")
    # Refuses what is damaged or too large, before frames are decoded.
    _, animation = opened(pictures[0], 3)
    if getattr(animation, "n_frames", 1) <= wanted[-1]:
        raise UnusableImageError("short")
    return list(_animated(animation, wanted))


def _animated(animation: Image.Image, wanted: range) -> Iterator[Image.Image]:
    for number in wanted:
        try:
            animation.seek(number)
            frame = animation.convert("RGB")
        # As a damaged image is answered by errors of many types.
        except Exception as error:
            if isinstance(error, MemoryError):
                raise
            raise UnusableImageError("unreadable") from None
        yield frame


def _cropped(picture: Image.Image, width: int, height: int) -> np.ndarray:
    """The middle of the picture, scaled to cover the shape: uint8 [3, height, width]."""
    image = scaled(picture, width, height)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return np.asarray(image.crop((left, top, left + width, top + height))).transpose(2, 0, 1)
