"""Samples with their captions out of what a study names; what cannot be one is told apart by its reason."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from effllm.data.captions.found import VIDEOS, Files, Found, Picture
from effllm.data.captions.settings import Captions, DigitsWithCaptions, HubFilesWithCaptions, HubRowsWithCaptions
from effllm.data.images.reading import Digits, UnusableImageError, opened, scaled

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class CaptionSource(Protocol):
    """Where samples come from."""

    label: str

    def found(self) -> Iterator[Found]: ...


def open_source(config: Captions, files: Mapping[str, Path], scratch: Path) -> CaptionSource:
    """What a study names; downloads go to `scratch`."""
    source, is_clip = config.source, config.frames > 1
    if isinstance(source, DigitsWithCaptions):
        return _Digits((config.frames - 1) * config.every + 1)
    if isinstance(source, HubRowsWithCaptions | HubFilesWithCaptions):
        # The hub's libraries take seconds to import.
        from effllm.data.captions.hub import HubRows, hub_files

        return HubRows(source, scratch) if source.kind == "hub" else hub_files(source, scratch, is_clip)
    return Files(files.values(), is_clip)


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
    cropped: list[np.ndarray] = []
    shape = config.sizes[0]
    for frame in _frames(found.frames, config):
        picture = opened(frame, 3)[0]
        if not cropped:
            first = math.log(picture.width / picture.height)
            shape = min(config.sizes, key=lambda size: abs(math.log(size[0] / size[1]) - first))
        cropped.append(_cropped(picture, *shape))
    return np.stack(cropped)


def _frames(pictures: Sequence[Picture], config: Captions) -> Iterator[Picture]:
    """As many as asked for: of a folder, of a video, or of one animated file."""
    wanted = range(0, config.frames * config.every, config.every)
    first = pictures[0]
    if len(pictures) == 1 and isinstance(first, Path) and first.suffix.lower() in VIDEOS:
        # Only sets of videos pay for the import.
        from effllm.data.captions.videos import frames_of

        yield from frames_of(first, wanted)
    elif len(pictures) > wanted[-1]:
        yield from (pictures[number] for number in wanted)
    elif len(pictures) > 1 or not isinstance(first, Path):
        raise UnusableImageError("short")
    else:
        # Refuses what is damaged or too large, before frames are decoded.
        _, animation = opened(first, 3)
        if getattr(animation, "n_frames", 1) <= wanted[-1]:
            raise UnusableImageError("short")
        yield from _animated(animation, wanted)


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
