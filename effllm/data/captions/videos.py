"""Frames of video files, by PyAV."""

from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from effllm.data.images.reading import UnusableImageError


def frames_of(path: Path, wanted: range) -> Iterator[Image.Image]:
    """The frames of these numbers, as they are stored: no rotation that a player would apply.

    Raises `UnusableImageError` for what is damaged, huge or ends before; the operating system's own errors pass.
    """
    # Only sets of videos pay for the import.
    import av

    largest = Image.MAX_IMAGE_PIXELS or 0
    with open(path, "rb") as file:
        try:
            with av.open(file, "r") as container:
                if not container.streams.video:
                    raise UnusableImageError("unreadable")
                stream = container.streams.video[0]
                if stream.codec_context.width * stream.codec_context.height > largest:
                    raise UnusableImageError("huge")
                for number, frame in enumerate(container.decode(stream)):
                    if number in wanted:
                        yield frame.to_image()
                    if number == wanted[-1]:
                        return
        # Its errors are those of the content, some of them OSErrors too: the file itself was opened before.
        except av.FFmpegError:
            raise UnusableImageError("unreadable") from None
    raise UnusableImageError("short")
