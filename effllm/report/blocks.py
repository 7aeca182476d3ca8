"""What a section of the page is made of; templates/parts.html.j2 writes one kind of block each."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from effllm.report.forest import Forest
from effllm.report.scatter import Scatter


@dataclass(frozen=True)
class Heading:
    """A heading of the third level; `id` is its anchor."""

    kind: ClassVar[str] = "heading"
    id: str
    text: str


@dataclass(frozen=True)
class Text:
    """A paragraph; a note is smaller."""

    kind: ClassVar[str] = "text"
    text: str
    is_note: bool = False


@dataclass(frozen=True)
class Command:
    """A command line to copy."""

    kind: ClassVar[str] = "command"
    text: str


@dataclass(frozen=True)
class Bullets:
    """A list of sentences."""

    kind: ClassVar[str] = "bullets"
    lines: Sequence[str]


@dataclass(frozen=True)
class Facts:
    """Names and their values."""

    kind: ClassVar[str] = "facts"
    pairs: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Legend:
    """Names of colours and of shapes, in their order, and what else is drawn."""

    kind: ClassVar[str] = "legend"
    series: Sequence[str]
    shapes: Sequence[str]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Absent:
    """What is not there, why, and the command that makes it."""

    kind: ClassVar[str] = "absent"
    text: str
    command: str = ""


@dataclass(frozen=True)
class Transcript:
    """What a command prints, under a summary that opens it."""

    kind: ClassVar[str] = "transcript"
    summary: str
    text: str


@dataclass(frozen=True)
class Head:
    """A column of a listing. is_long: text that may be wrapped."""

    label: str
    is_number: bool = False
    is_long: bool = False


@dataclass(frozen=True)
class Cell:
    """A cell: text, what follows it in small (an interval), and what a number is sorted by."""

    text: str
    small: str = ""
    order: float | None = None


@dataclass(frozen=True)
class Entry:
    """A row of a listing. id: anchor of a row of a table; values: JSON of the figures that budgets apply to."""

    cells: Sequence[Cell]
    id: str = ""
    series: str = ""
    values: str = ""
    is_valid: bool = True


@dataclass(frozen=True)
class Listing:
    """A table, and the CSV to copy from it; ids are unique in the page."""

    kind: ClassVar[str] = "listing"
    id: str
    caption: str
    columns: Sequence[Head]
    rows: Sequence[Entry]
    csv: str
    is_sortable: bool = False


@dataclass(frozen=True)
class ChartFigure:
    """A chart with its caption and a sentence that says what it shows; without a chart, `missing` says why.

    notes: rows that are absent from it and why, and whatever is drawn unusually.
    """

    id: str
    caption: str
    sentence: str
    scatter: Scatter | None = None
    forest: Forest | None = None
    missing: str = ""
    notes: Sequence[str] = ()
    listing: Listing | None = None


@dataclass(frozen=True)
class Figures:
    """Charts in a grid of equal ones, or one below the other."""

    kind: ClassVar[str] = "figures"
    figures: Sequence[ChartFigure]
    is_wide: bool = False


@dataclass(frozen=True)
class Picture:
    """An image within the page: `source` is a data URI, `text` says what it shows; width and height in pixels."""

    caption: str
    text: str
    source: str
    width: int
    height: int


@dataclass(frozen=True)
class Pictures:
    """Images in a grid."""

    kind: ClassVar[str] = "pictures"
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Slider:
    """A budget to try. side: `maximum` or `minimum`; stops: its values; start: index of the one it starts at."""

    id: str
    column: str
    label: str
    unit: str
    side: str
    stops: Sequence[float]
    stops_text: str
    start: int


@dataclass(frozen=True)
class Sliders:
    """Budgets to try, and the beginning of the command that answers them; hidden without a script."""

    kind: ClassVar[str] = "sliders"
    command: str
    sliders: Sequence[Slider]


Block = (
    Heading | Text | Command | Bullets | Facts | Legend | Absent | Listing | Figures | Pictures | Sliders | Transcript
)


@dataclass(frozen=True)
class Answer:
    """The first lines of the page: what one table decides, or one scope of it. anchor: the section with its reasons."""

    heading: str
    anchor: str
    lead: str
    lines: Sequence[str]
    is_found: bool


@dataclass(frozen=True)
class Section:
    """A section of the page. table: name of the table that its rows are of; empty where it is about none."""

    id: str
    heading: str
    blocks: Sequence[Block]
    table: str = ""


@dataclass(frozen=True)
class Page:
    """The whole page. made_from: the directories and files it was made from, in words."""

    title: str
    subtitle: Sequence[str]
    answers: Sequence[Answer]
    sections: Sequence[Section]
    made_from: str = field(default="")


def csv_text(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """CSV with line feeds; None is an empty cell."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(["" if cell is None else cell for cell in row] for row in rows)
    return stream.getvalue()
