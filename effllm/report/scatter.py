"""Scatter charts: a resource against a quality, with intervals, budgets, a frontier or the quadrant of gains.

The geometry is computed here, in pixels of the chart's own box; templates/charts.html.j2 writes it as SVG.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from effllm.decision.rows import Figure
from effllm.report.dodging import dodged
from effllm.report.figures import figure_text
from effllm.report.scales import Scale, scale_of

# Narrower than a phone's screen, so that text is never scaled below its size.
WIDTH, HEIGHT = 330, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 50.0, 12.0, 30.0, 44.0
SHAPES = 6
COLOURS = 8
_LARGE, _SMALL = 5.0, 3.0
_CROWD = 60


@dataclass(frozen=True)
class Mark:
    """One row in a chart.

    row: id of the row in the page. name, tip: for people. series, shape: which colour and which shape, from 0.
    is_valid: a row that is not is drawn hollow. is_faded: surely beaten by another row.
    """

    row: str
    name: str
    tip: str
    x: Figure
    y: Figure
    series: int = 0
    shape: int = 0
    is_valid: bool = True
    is_faded: bool = False


@dataclass(frozen=True)
class Axis:
    """What an axis shows.

    form: `absolute` in `unit`; `ratio` to a baseline, written as a change in percent; `difference` from it in `unit`.
    limit: a budget in the axis's own unit; beyond it is the excluded side, above it where less is better.
    """

    quantity: str
    unit: str
    form: Literal["absolute", "ratio", "difference"] = "absolute"
    less_is_better: bool = True
    limit: float | None = None

    @property
    def unchanged(self) -> float | None:
        """The value of no change; None on an axis that shows figures themselves."""
        return {"absolute": None, "ratio": 1.0, "difference": 0.0}[self.form]

    def title(self, is_log: bool) -> str:
        """Quantity and unit."""
        if self.form == "ratio":
            return f"{self.quantity}, {'times the baseline' if is_log else 'change in %'}"
        return f"{self.quantity}, {self.unit}" if self.unit else self.quantity

    def tick(self, value: float, is_log: bool) -> str:
        """Label of a tick."""
        if self.form == "ratio":
            return f"\N{MULTIPLICATION SIGN}{figure_text(value, 3)}" if is_log else _change(value)
        return figure_text(value, 3, signed=self.form == "difference")


@dataclass(frozen=True)
class Placed:
    """A mark in pixels. `home` is where it belongs, `x` where it is drawn; intervals are pairs of pixels or None."""

    mark: Mark
    x: float
    y: float
    home: float
    size: float
    x_interval: tuple[float, float] | None
    y_interval: tuple[float, float] | None


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis."""

    at: float
    text: str


@dataclass(frozen=True)
class Joined:
    """A line through marks of one colour: hidden with the first of them."""

    row: str
    series: int
    path: str


@dataclass(frozen=True)
class Scatter:
    """A chart in pixels, as the template writes it.

    excluded: rectangles (x, y, width, height) beyond a budget; limits: lines (x1, y1, x2, y2) of budgets that lie on
    the axes; gain: the quadrant that is better in both, of charts of change.
    """

    x_title: str
    y_title: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    marks: list[Placed]
    frontier: str | None
    gain: tuple[float, float, float, float] | None
    origin: tuple[float, float] | None
    excluded: list[tuple[float, float, float, float]]
    limits: list[tuple[float, float, float, float]]
    is_log: bool
    moved: int
    width: int = WIDTH
    height: int = HEIGHT
    left: float = _LEFT
    right: float = WIDTH - _RIGHT
    top: float = _TOP
    bottom: float = HEIGHT - _BOTTOM
    off_axis: list[str] = field(default_factory=list)
    joined: list[Joined] = field(default_factory=list)


def scatter(
    marks: Sequence[Mark],
    x: Axis,
    y: Axis,
    frontier: Sequence[Mark] = (),
    joined: Sequence[Sequence[Mark]] = (),
) -> Scatter:
    """Place the marks, one at least.

    frontier: those of them that a dashed line joins. joined: groups of them, each joined by a line in its order.
    """
    left, right, top, bottom = _LEFT, WIDTH - _RIGHT, _TOP, HEIGHT - _BOTTOM
    x_scale = _scale(x, [mark.x for mark in marks], left, right)
    y_scale = _scale(y, [mark.y for mark in marks], bottom, top)
    homes = [(x_scale.place(mark.x.value), y_scale.place(mark.y.value)) for mark in marks]
    size = _SMALL if len(marks) > _CROWD else _LARGE
    placed = [
        Placed(mark, at, home[1], home[0], size, _interval(mark.x, x_scale), _interval(mark.y, y_scale))
        for mark, home, at in zip(marks, homes, dodged(homes, left + size, right - size), strict=True)
    ]
    origin = None
    if x.unchanged is not None and y.unchanged is not None:
        origin = x_scale.place(x.unchanged), y_scale.place(y.unchanged)
    gain = _quadrant(origin, x, y, (left, top, right, bottom)) if origin else None
    excluded, limits, off_axis = [], [], []
    for axis, scale, is_x in ((x, x_scale, True), (y, y_scale, False)):
        if axis.limit is None:
            continue
        if not scale.holds(axis.limit):
            off_axis.append(_off_axis(axis, scale))
            continue
        at = scale.place(axis.limit)
        if is_x:
            limits.append((at, top, at, bottom))
            excluded.append(
                (at, top, right - at, bottom - top) if x.less_is_better else (left, top, at - left, bottom - top)
            )
        else:
            limits.append((left, at, right, at))
            excluded.append(
                (left, top, right - left, at - top) if y.less_is_better else (left, at, right - left, bottom - at)
            )
    return Scatter(
        x_title=x.title(x_scale.is_log) + (", log" if x_scale.is_log else ""),
        y_title=y.title(y_scale.is_log),
        x_ticks=[Tick(x_scale.place(tick), x.tick(tick, x_scale.is_log)) for tick in x_scale.ticks()],
        y_ticks=[Tick(y_scale.place(tick), y.tick(tick, y_scale.is_log)) for tick in y_scale.ticks()],
        marks=placed,
        frontier=_steps(frontier, x_scale, y_scale, x, y) if frontier else None,
        gain=gain,
        origin=origin,
        excluded=excluded,
        limits=limits,
        is_log=x_scale.is_log,
        moved=sum(1 for item in placed if abs(item.x - item.home) > 0.5),
        off_axis=off_axis,
        joined=[_joined(group, x_scale, y_scale) for group in joined if len(group) > 1],
    )


def _scale(axis: Axis, figures: Sequence[Figure], begin: float, end: float) -> Scale:
    values = [figure.value for figure in figures] + ([] if axis.unchanged is None else [axis.unchanged])
    reach = [end for figure in figures for end in (figure.lowest, figure.highest)]
    scale = scale_of(values, reach, begin, end, may_be_log=axis.form != "difference")
    if axis.limit is None or scale.holds(axis.limit):
        return scale
    # A budget far from every row would squeeze the rows into a corner: it is told in words.
    width = scale.high - scale.low
    if scale.low - width / 2 <= axis.limit <= scale.high + width / 2:
        return scale_of(values, [*reach, axis.limit], begin, end, may_be_log=axis.form != "difference")
    return scale


def _interval(figure: Figure, scale: Scale) -> tuple[float, float] | None:
    if figure.low is None or figure.high is None:
        return None
    return scale.place(figure.low), scale.place(figure.high)


def _quadrant(
    origin: tuple[float, float], x: Axis, y: Axis, box: tuple[float, float, float, float]
) -> tuple[float, float, float, float]:
    left, top, right, bottom = box
    x0, x1 = (left, origin[0]) if x.less_is_better else (origin[0], right)
    y0, y1 = (origin[1], bottom) if y.less_is_better else (top, origin[1])
    return x0, y0, x1 - x0, y1 - y0


def _off_axis(axis: Axis, scale: Scale) -> str:
    assert axis.limit is not None
    side = "beyond every row" if axis.limit > scale.high else "below every row"
    limit = f"{figure_text(axis.limit)} {axis.unit}".strip()
    return f"The limit of {limit} on {axis.quantity.lower()} lies {side} and is not drawn."


def _joined(marks: Sequence[Mark], x_scale: Scale, y_scale: Scale) -> Joined:
    places = [f"{x_scale.place(mark.x.value):.1f} {y_scale.place(mark.y.value):.1f}" for mark in marks]
    return Joined(marks[0].row, marks[0].series, f"M{'L'.join(places)}")


def _steps(frontier: Sequence[Mark], x_scale: Scale, y_scale: Scale, x: Axis, y: Axis) -> str:
    """A path in steps: with what a row has, one gets its quality until the next row is affordable."""
    ordered = sorted(frontier, key=lambda mark: (mark.x.value if x.less_is_better else -mark.x.value, mark.y.value))
    start = ordered[0]
    path = f"M{x_scale.place(start.x.value):.1f} {y_scale.place(start.y.value):.1f}"
    for mark in ordered[1:]:
        path += f"H{x_scale.place(mark.x.value):.1f}V{y_scale.place(mark.y.value):.1f}"
    return path + f"H{x_scale.end if x.less_is_better else x_scale.begin:.1f}"


def _change(ratio: float) -> str:
    return figure_text(float(f"{100 * (ratio - 1):.6g}"), 3, signed=True)
