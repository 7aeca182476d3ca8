"""Stage `captions`: images or clips with captions, scaled and cropped to a few shapes, split by their content.

in:  nothing (digits), or files
out: <split>.pixels.bin, <split>.samples.parquet, captions.json

The hash of a sample's pixels decides its side of the split; a sample whose pixels came before is left out.
"""

from collections import Counter
from contextlib import ExitStack

import numpy as np
import xxhash

from effllm.data.captions.reading import REASONS, CaptionSource, Found, caption_of, open_source, pixels_of
from effllm.data.captions.settings import Captions
from effllm.data.captions.store import SPLITS, CaptionWriter
from effllm.data.images.reading import UnusableImageError
from effllm.data.sampling import SPLIT_SALT
from effllm.errors import UserError
from effllm.results.data import CaptionsSummary
from effllm.runtime.progress import progress
from effllm.runtime.stage import Job, main

# Names of files that were left out, to look at.
_NAMED = 20


def build(job: Job) -> None:
    """Prepare the samples that `job.spec` describes; `UserError` if either split ends up empty."""
    config = job.config(Captions)
    source = open_source(config, job.files)
    dropped: Counter[str] = Counter(dict.fromkeys((*REASONS, "duplicate"), 0))
    shapes: Counter[str] = Counter(dict.fromkeys(config.shapes, 0))
    names: list[str] = []
    seen: set[bytes] = set()
    count = 0
    with ExitStack() as stack:
        writers = {split: stack.enter_context(CaptionWriter(job.output, split)) for split in SPLITS}
        for found in progress(source.found(), unit="samples", label=f"reading {source.label}"):
            count += 1
            try:
                caption, pixels = _read(found, config)
            except UnusableImageError as error:
                dropped[str(error)] += 1
                names.append(f"{found.name}: {error}")
                continue
            digest = xxhash.xxh3_128_digest(pixels.tobytes(), SPLIT_SALT)
            if digest in seen:
                dropped["duplicate"] += 1
                continue
            seen.add(digest)
            shapes[f"{pixels.shape[3]}x{pixels.shape[2]}"] += 1
            is_held_out = int.from_bytes(digest[:8], "big") < config.held_out_fraction * 2**64
            writers["held_out" if is_held_out else "train"].write(found.name, caption, pixels)
    counts = {split: len(writer) for split, writer in writers.items()}
    _require_samples(counts, count, dropped, names, source)
    job.write(
        CaptionsSummary(
            seen=count,
            dropped=dict(dropped),
            unusable=names[:_NAMED],
            splits=counts,
            shapes=dict(shapes),
            frames=config.frames,
        )
    )


def _read(found: Found, config: Captions) -> tuple[str, np.ndarray]:
    if found.reason is not None:
        raise UnusableImageError(found.reason)
    return caption_of(found), pixels_of(found, config)


def _require_samples(
    counts: dict[str, int], seen: int, dropped: Counter[str], names: list[str], source: CaptionSource
) -> None:
    for split, count in counts.items():
        if not count:
            reasons = ", ".join(f"{number} {reason}" for reason, number in dropped.items() if number) or "none dropped"
            first = f"; the first is {names[0]}" if names else ""
            videos = "; split videos into folders of frames" if dropped["video"] else ""
            raise UserError(
                f"no sample is left for {split} of the {seen} of {source.label} ({reasons}{first}): give more images "
                f"with captions, or change held_out_fraction{videos}."
            )


if __name__ == "__main__":
    from effllm.stages.captions import CaptionsStage

    main(CaptionsStage(), build)
