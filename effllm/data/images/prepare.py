"""The stage that prepares images: scaled and cropped to one size, without duplicates, split by their content.

Payload: `train` and `held_out`, as `effllm.data.images.store` has them, and `images.json`. The hash of an image's
pixels decides its side, so that neither another image nor the order moves it; an image that comes again is left out.
"""

from collections import Counter
from contextlib import ExitStack

from effllm.data.images.reading import ODD, REASONS, UnusableImageError, open_source, pixels
from effllm.data.images.settings import Images
from effllm.data.images.sifting import Sifting
from effllm.data.images.store import SPLITS, ImageWriter
from effllm.results.data import ImagesSummary
from effllm.runtime.progress import progress
from effllm.runtime.stage import Job, main


def build(job: Job) -> None:
    """Prepare the images that `job.spec` describes; `UserError` if either split ends up empty."""
    config = job.config(Images)
    source = open_source(config, job.files, job.scratch / "hub")
    sifting = Sifting(REASONS, config.held_out_fraction)
    odd: Counter[str] = Counter()
    with ExitStack() as stack:
        writers = {split: stack.enter_context(ImageWriter(job.output, split)) for split in SPLITS}
        for name, label, picture in progress(source.pictures(), unit="images", label=f"reading {source.label}"):
            sifting.seen += 1
            try:
                if label < 0:
                    raise UnusableImageError("unlabelled")
                image, oddities = pixels(picture, config.size, config.channels, config.crop)
            except UnusableImageError as error:
                sifting.drop(name, str(error))
                continue
            if split := sifting.split_of(image):
                odd.update(oddities)
                writers[split].write(image, label)
    counts = {split: len(writer) for split, writer in writers.items()}
    sifting.require(counts, "image", source.label, "give more images, or change held_out_fraction")
    job.write(
        ImagesSummary(
            seen=sifting.seen,
            dropped=dict(sifting.dropped),
            **({"odd": {name: odd[name] for name in ODD if odd[name]}} if odd else {}),
            unusable=sifting.unusable,
            splits=counts,
            classes=source.classes,
            size=config.size,
            channels=config.channels,
        )
    )


if __name__ == "__main__":
    from effllm.stages.images import ImagesStage

    main(ImagesStage(), build)
