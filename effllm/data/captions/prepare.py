"""Stage `captions`: images or clips with captions, scaled and cropped to a few shapes, split by their content.

in:  nothing (digits, the hub), or files
out: <split>.pixels.bin, <split>.samples.parquet, captions.json

The hash of a sample's pixels decides its side of the split; a sample whose pixels came before is left out.
"""

from collections import Counter
from contextlib import ExitStack

import numpy as np

from effllm.data.captions.found import REASONS, Found
from effllm.data.captions.reading import caption_of, open_source, pixels_of
from effllm.data.captions.settings import Captions
from effllm.data.captions.store import SPLITS, CaptionWriter
from effllm.data.images.reading import UnusableImageError
from effllm.data.images.sifting import Sifting
from effllm.results.data import CaptionsSummary
from effllm.runtime.progress import progress
from effllm.runtime.stage import Job, main


def build(job: Job) -> None:
    """Prepare the samples that `job.spec` describes; `UserError` if either split ends up empty."""
    config = job.config(Captions)
    source = open_source(config, job.files, job.scratch / "hub")
    sifting = Sifting(REASONS, config.held_out_fraction)
    shapes: Counter[str] = Counter(dict.fromkeys(config.shapes, 0))
    with ExitStack() as stack:
        writers = {split: stack.enter_context(CaptionWriter(job.output, split)) for split in SPLITS}
        for found in progress(source.found(), unit="samples", label=f"reading {source.label}"):
            sifting.seen += 1
            try:
                caption, pixels = _read(found, config)
            except UnusableImageError as error:
                sifting.drop(found.name, str(error))
                continue
            if split := sifting.split_of(pixels):
                shapes[f"{pixels.shape[3]}x{pixels.shape[2]}"] += 1
                writers[split].write(found.name, caption, pixels)
    counts = {split: len(writer) for split, writer in writers.items()}
    videos = "; give frames if videos are to be read" if sifting.dropped["video"] else ""
    remedy = f"give more images with captions, or change held_out_fraction{videos}"
    sifting.require(counts, "sample", source.label, remedy)
    job.write(
        CaptionsSummary(
            seen=sifting.seen,
            dropped=dict(sifting.dropped),
            unusable=sifting.unusable,
            splits=counts,
            shapes=dict(shapes),
            frames=config.frames,
        )
    )


def _read(found: Found, config: Captions) -> tuple[str, np.ndarray]:
    if found.reason is not None:
        raise UnusableImageError(found.reason)
    return caption_of(found), pixels_of(found, config)


if __name__ == "__main__":
    from effllm.stages.captions import CaptionsStage

    main(CaptionsStage(), build)
