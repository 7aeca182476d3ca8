"""The stage that prepares images: scaled and cropped to one size, without duplicates, split by their content.

Payload: `train` and `held_out`, as `effllm.data.images.store` has them, and `images.json`. The hash of an image's
pixels decides its side, so that neither another image nor the order moves it; an image that comes again is left out.
"""

from collections import Counter
from contextlib import ExitStack

import xxhash

from effllm.data.images.reading import ODD, REASONS, ImageSource, UnusableImageError, open_source, pixels
from effllm.data.images.settings import Images
from effllm.data.images.store import SPLITS, ImageWriter
from effllm.data.sampling import SPLIT_SALT
from effllm.errors import UserError
from effllm.results.data import ImagesSummary
from effllm.runtime.progress import progress
from effllm.runtime.stage import Job, main

# Names of images that were left out, to look at.
_NAMED = 20


def build(job: Job) -> None:
    """Prepare the images that `job.spec` describes; `UserError` if either split ends up empty."""
    config = job.config(Images)
    source = open_source(config, job.files, job.scratch / "hub")
    dropped: Counter[str] = Counter(dict.fromkeys((*REASONS, "duplicate"), 0))
    odd: Counter[str] = Counter()
    names: list[str] = []
    count = 0
    seen: set[bytes] = set()
    with ExitStack() as stack:
        writers = {split: stack.enter_context(ImageWriter(job.output, split)) for split in SPLITS}
        for name, label, picture in progress(source.pictures(), unit="images", label=f"reading {source.label}"):
            count += 1
            try:
                if label < 0:
                    raise UnusableImageError("unlabelled")
                image, oddities = pixels(picture, config.size, config.channels, config.crop)
            except UnusableImageError as error:
                dropped[str(error)] += 1
                names.append(f"{name}: {error}")
                continue
            digest = xxhash.xxh3_128_digest(image.tobytes(), SPLIT_SALT)
            if digest in seen:
                dropped["duplicate"] += 1
                continue
            seen.add(digest)
            odd.update(oddities)
            is_held_out = int.from_bytes(digest[:8], "big") < config.held_out_fraction * 2**64
            writers["held_out" if is_held_out else "train"].write(image, label)
    counts = {split: len(writer) for split, writer in writers.items()}
    _require_images(counts, count, dropped, names, source)
    job.write(
        ImagesSummary(
            seen=count,
            dropped=dict(dropped),
            **({"odd": {name: odd[name] for name in ODD if odd[name]}} if odd else {}),
            unusable=names[:_NAMED],
            splits=counts,
            classes=source.classes,
            size=config.size,
            channels=config.channels,
        )
    )


def _require_images(
    counts: dict[str, int], seen: int, dropped: Counter[str], names: list[str], source: ImageSource
) -> None:
    for split, count in counts.items():
        if not count:
            reasons = ", ".join(f"{number} {reason}" for reason, number in dropped.items() if number) or "none dropped"
            first = f"; the first is {names[0]}" if names else ""
            raise UserError(
                f"no image is left for {split} of the {seen} of {source.label} ({reasons}{first}): give more "
                "images, or change held_out_fraction."
            )


if __name__ == "__main__":
    from effllm.stages.images import ImagesStage

    main(ImagesStage(), build)
