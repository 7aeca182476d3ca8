"""Forest charts: one interval a line, with its figures, as a table whose middle column is drawn.

Places are percentages of the drawn column's width, so that the chart is as wide as the page lets it be.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from effllm.decision.rows import Figure
from effllm.report.figures import figure_text, interval_text, percent_text
from effllm.report.scales import Scale, scale_of
from effllm.report.scatter import Axis, Tick

_EDGE = 4.0


@dataclass(frozen=True)
class Line:
    """One line of a forest chart.

    row: id of the row in the page. name: for people. figure: None where it was not measured, and `note` says why.
    note: what else there is to say, such as the number of items that differ. verdict: in words.
    """

    row: str
    name: str
    figure: Figure | None
    verdict: str = ""
    note: str = ""
    series: int = 0
    is_valid: bool = True


@dataclass(frozen=True)
class Drawn:
    """A line in percent of the column's width; `at` and `ends` are None where there is nothing to draw."""

    line: Line
    text: str
    interval: str
    at: float | None
    ends: tuple[float, float] | None
    is_cut: bool


@dataclass(frozen=True)
class Forest:
    """A chart in percent, as the template writes it. `origin`: the place of no change; None where it is not shown."""

    title: str
    lines: list[Drawn]
    ticks: list[Tick]
    origin: float | None
    gain: tuple[float, float] | None

    @property
    def has_words(self) -> bool:
        """Whether a line has a verdict or a note."""
        return any(item.line.verdict or item.line.note for item in self.lines)

    @property
    def has_intervals(self) -> bool:
        """Whether a line has an interval."""
        return any(item.ends for item in self.lines)


def forest(lines: Sequence[Line], axis: Axis) -> Forest:
    """Place the lines on one axis; lines without a figure stay, with their note."""
    figures = [line.figure for line in lines if line.figure]
    zero = axis.unchanged
    title = axis.title(is_log=False)
    if not figures:
        return Forest(title, [Drawn(line, figure_text(None), "", None, None, False) for line in lines], [], None, None)
    values = [figure.value for figure in figures] + ([] if zero is None else [zero])
    reach = [end for figure in figures for end in (figure.lowest, figure.highest)]
    scale = scale_of(values, reach, _EDGE, 100 - _EDGE, may_be_log=axis.form != "difference")
    origin = scale.place(zero) if zero is not None else None
    ticks = [Tick(scale.place(tick), axis.tick(tick, scale.is_log)) for tick in _sparse(scale.ticks())]
    gain = None
    if origin is not None:
        gain = (0.0, origin) if axis.less_is_better else (origin, 100 - origin)
    return Forest(axis.title(scale.is_log), [_drawn(line, axis, scale) for line in lines], ticks, origin, gain)


def _drawn(line: Line, axis: Axis, scale: Scale) -> Drawn:
    figure = line.figure
    if figure is None:
        return Drawn(line, figure_text(None), "", None, None, False)
    ends, is_cut = None, False
    if figure.low is not None and figure.high is not None:
        ends = scale.place(figure.low), scale.place(figure.high)
        is_cut = not (scale.holds(figure.low) and scale.holds(figure.high))
    return Drawn(line, value_text(figure, axis), ends_text(figure, axis), scale.place(figure.value), ends, is_cut)


def value_text(figure: Figure, axis: Axis) -> str:
    """The figure as text: in percent for a ratio, signed for a difference."""
    if axis.form == "ratio":
        return percent_text(figure.value)
    return figure_text(figure.value, signed=axis.form == "difference")


def ends_text(figure: Figure, axis: Axis) -> str:
    """The interval as text, in the figure's own unit; empty where there is none."""
    if figure.low is None or figure.high is None:
        return ""
    if axis.form == "ratio":
        return f"[{percent_text(figure.low)}, {percent_text(figure.high)}]"
    return interval_text(figure.low, figure.high, signed=axis.form == "difference")


def _sparse(ticks: Sequence[float]) -> Sequence[float]:
    """Few enough for a column of a hundred pixels."""
    return ticks if len(ticks) <= 3 else ticks[:: -(-len(ticks) // 3)]
