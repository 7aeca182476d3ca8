"""The section of images that were sampled from the models behind the tables."""

import base64
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from effllm.report.blocks import Absent, Block, Picture, Pictures, Section, Text
from effllm.report.figures import listed
from effllm.report.run import Run

# Pixels of a picture on the page, at most, and how much of a coloured one is kept.
_WIDEST, _QUALITY = 480, 80


@dataclass(frozen=True)
class _Kind:
    """Pictures that a stage leaves: where, what is said of them, and the run of a table's row by an artifact's id."""

    stage: str
    file: str
    text: str
    run_of: Callable[[str], str]


_KINDS = (
    _Kind(
        "sample",
        "records/grid.png",
        "The first samples of the first seed, a row for each class, the same classes and noise for every model. "
        "Distances from real images are in the tables.",
        lambda id: id.rpartition(".")[0],
    ),
    _Kind(
        "tune",
        "records/previews.png",
        "Samples before a fine-tuning (above) and after it (in the middle), of the same captions and from the same "
        "noise for every method; at the bottom held-out samples that have these captions. Of a clip, frames below each "
        "other.",
        str,
    ),
)


def samples_section(run: Run) -> Section | None:
    """Some samples of every model; None where the tables are of no samples."""
    blocks = [block for kind in _KINDS for block in _blocks(run, kind)]
    return Section("samples", "Samples", blocks) if blocks else None


def _blocks(run: Run, kind: _Kind) -> list[Block]:
    names = [made.name for made in run.made if made.name.startswith(f"{kind.stage}/")]
    # As the tables have their rows; what is of no row comes last.
    places = {id: place for place, id in enumerate(_runs(run))}
    names.sort(key=lambda name: places.get(kind.run_of(name.removeprefix(f"{kind.stage}/")), len(places)))
    if not names:
        return []
    there = [name for name in names if (run.directory / name / kind.file).is_file()]
    pictures = [_picture(run.directory / name / kind.file, name.removeprefix(f"{kind.stage}/")) for name in there]
    blocks: list[Block] = [Text(kind.text)]
    if pictures:
        blocks.append(Pictures(pictures))
    if lost := [name for name in names if name not in there]:
        blocks.append(Absent(f"No picture is left of {listed(lost)}: {kind.file} is missing."))
    return blocks


def _runs(run: Run) -> Iterator[str]:
    """Ids of the runs behind the tables' rows, in their order, each where it comes first."""
    found: dict[str, None] = {}
    for spec in run.specs.values():
        for row in (spec.get("config") or {}).get("rows") or ():
            found |= dict.fromkeys([row["run"]] if "run" in row else row.get("runs", ()))
    yield from found


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
