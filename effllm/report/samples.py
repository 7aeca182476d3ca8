"""The section of images that were sampled from the models behind the tables."""

import base64
import io
from pathlib import Path

from effllm.report.blocks import Absent, Block, Picture, Pictures, Section, Text
from effllm.report.figures import listed
from effllm.report.run import Run

_SAMPLE, _GRID = "sample/", "records/grid.png"
# Pixels of a picture on the page, at most, and how much of a coloured one is kept.
_WIDEST, _QUALITY = 480, 80


def samples_section(run: Run) -> Section | None:
    """Some samples of every model, a row for each class; None where the tables are of no samples."""
    names = [made.name for made in run.made if made.name.startswith(_SAMPLE)]
    if not names:
        return None
    there = [name for name in names if (run.directory / name / _GRID).is_file()]
    pictures = [_picture(run.directory / name / _GRID, name.removeprefix(_SAMPLE)) for name in there]
    blocks: list[Block] = [
        Text(
            "The first samples of the first seed, a row for each class, the same classes and noise for every model. "
            "Distances from real images are in the tables."
        )
    ]
    if pictures:
        blocks.append(Pictures(pictures))
    if lost := [name for name in names if name not in there]:
        blocks.append(Absent(f"No picture is left of {listed(lost)}: {_GRID} is missing."))
    return Section("samples", "Samples", blocks)


def _picture(path: Path, name: str) -> Picture:
    from PIL import Image

    with Image.open(path) as file:
        grid = file.copy()
    if grid.width > _WIDEST:
        grid = grid.resize((_WIDEST, round(grid.height * _WIDEST / grid.width)), Image.Resampling.BOX)
    kind, options = ("png", {"optimize": True}) if grid.mode == "L" else ("jpeg", {"quality": _QUALITY})
    content = io.BytesIO()
    grid.save(content, kind, **options)
    source = f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}"
    return Picture(name, f"Samples of {name}", source, grid.width, grid.height)
