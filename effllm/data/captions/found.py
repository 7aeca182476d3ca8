"""What may become samples, and files by their paths."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TypeAlias

from PIL import Image

REASONS = (
    "unreadable",
    "huge",
    "deep",
    "without_image",
    "without_caption",
    "without_frames",
    "several",
    "empty_caption",
    "unreadable_caption",
    "short",
    "video",
    "other",
)
"""Why files make no sample. The first three are those of images; a caption may be without its image, or its clip
without frames, or several files may have its name; a clip may be shorter than asked for; a video is no image; other
files are neither.
"""
IMAGES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".apng"})
VIDEOS = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg"})
_CAPTION = ".txt"
SUFFIXES = frozenset({*IMAGES, *VIDEOS, _CAPTION})


Picture: TypeAlias = Path | BytesIO | Image.Image


@dataclass(frozen=True)
class Found:
    """What may be a sample: its name, its caption, and its frames in their order; or the reason why it is none."""

    name: str
    caption: str | Path = ""
    frames: Sequence[Picture] = ()
    reason: str | None = None


class Files:
    """Files by their paths, which names say below `root`."""

    def __init__(self, paths: Iterable[Path], is_clip: bool, root: Path | None = None, label: str | None = None):
        self._paths, self._is_clip, self._root = sorted(paths), is_clip, root
        self.label = f"{len(self._paths)} files" + (f" of {label}" if label else "")

    def found(self) -> Iterator[Found]:
        """Samples in the order of their captions' paths; before them files that make none."""
        captions = {path.with_suffix(""): path for path in self._paths if path.suffix.lower() == _CAPTION}
        frames: dict[Path, list[Path]] = defaultdict(list)
        for path in self._paths:
            suffix = path.suffix.lower()
            if suffix in IMAGES or (suffix in VIDEOS and self._is_clip):
                own = path.with_suffix("")
                if own not in captions and path.parent not in captions:
                    yield Found(self._name(path), reason="without_caption")
                frames[own if own in captions else path.parent].append(path)
            elif suffix in VIDEOS:
                yield Found(self._name(path), reason="video")
                captions.pop(path.with_suffix(""), None)
            elif suffix != _CAPTION:
                yield Found(self._name(path), reason="other")
        absent = "without_frames" if self._is_clip else "without_image"
        for own, caption in captions.items():
            pictures = sorted(frames[own], key=_numbered)
            reason = None if pictures else absent
            if len(pictures) > 1 and any(path.with_suffix("") == own for path in pictures):
                reason = "several"
            yield Found(self._name(caption), caption, pictures, reason)

    def _name(self, path: Path) -> str:
        return str(path) if self._root is None else path.relative_to(self._root).as_posix()


def _numbered(path: Path) -> tuple[list[str | int], str]:
    """What orders frames: 2.png before 10.png."""
    pieces = re.split("([0-9]+)", str(path))
    return [int(piece) if number % 2 else piece for number, piece in enumerate(pieces)], str(path)
