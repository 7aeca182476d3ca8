"""What contradicts itself in published tables: figures that repeat, and figures that other figures rule out."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations

from effllm.decision.sheet import Names, Sheet
from effllm.telemetry.validity import check_equal, check_quantized_score, check_scores

TOKENS = 350e9
"""Tokens that each published architecture was trained on."""
DEVICES = 48
"""Devices that they were trained on."""
_DISTINCT_DIGITS = 4
_FEWEST_ROWS = 5
# Rows of several tables that are one training: their figures are the same where they were copied.
_ONE_TRAINING = (
    {
        ("table3", ("GQA", "1.5B")),
        ("table4", ("RoPE", "1.5B")),
        ("table5", ("Dense", "1.5B")),
        ("table6", ("Qwen2.5 (Transformer)", "1.5B")),
    },
    *({("table10", (model, "MHA")), ("table11", (model, "Dense"))} for model in ("DiT-XL/2", "DiT-L/8", "DiT-B/4")),
)
_SAMPLES = "implied_samples_per_iter"
_THROUGHPUT = "TT_tokens_per_param_s"


@dataclass(frozen=True)
class Finding:
    """One contradiction. rule: a short name. row, column: the figure it concerns, empty where it concerns many."""

    rule: str
    table: str
    row: str
    column: str
    message: str


def findings(sheets: Mapping[str, Sheet]) -> list[Finding]:
    """What is found in published tables, by name."""
    return [
        *repeats(sheets),
        *_throughput(sheets),
        *(finding for sheet in sheets.values() for finding in _samples(sheet)),
        *(finding for sheet in sheets.values() for finding in _constant_ratios(sheet)),
        *_nominal_compression(sheets),
        *_scores(sheets),
        *_latency_against_throughput(sheets),
    ]


def repeats(sheets: Mapping[str, Sheet]) -> list[Finding]:
    """Figures of one metric that are equal to the last digit in two rows that are no one training.

    Four digits or more, as fewer repeat by chance; with fewer, where the same two rows repeat another figure. Of two
    tables, where both rows are of one model or repeat more than one figure: among some 500 figures chance has others.
    """
    places: dict[tuple[str, float], list[tuple[str, Names]]] = {}
    digits: dict[tuple[str, float], int] = {}
    for name, sheet in sheets.items():
        for (row, column), figure in sheet.published.items():
            # What was read off a chart or computed is no copy of a printed digit.
            if figure.code in ("S2", "K"):
                places.setdefault((column, figure.value), []).append((name, row))
                digits[column, figure.value] = len(f"{figure.value:.15g}".replace(".", "").split("e")[0].strip("0"))
    found: dict[tuple[tuple[str, Names], tuple[str, Names]], list[tuple[str, float]]] = {}
    for key, rows in places.items():
        for one, other in combinations(rows, 2):
            if not any({one, other} <= same for same in _ONE_TRAINING):
                found.setdefault((one, other), []).append(key)
    result = []
    for (one, other), keys in found.items():
        telling = [key for key in keys if digits[key] >= _DISTINCT_DIGITS]
        if not telling or (one[0] != other[0] and len(keys) < 2 and not _is_one_model(sheets, one, other)):
            continue
        for column, value in keys:
            for (table, row), (there, elsewhere) in ((one, other), (other, one)):
                message = f"{value:.10g} is also in {there}, {' '.join(elsewhere)}"
                result.append(Finding("repeat", table, " ".join(row), column, message))
    return result


def _is_one_model(sheets: Mapping[str, Sheet], one: tuple[str, Names], other: tuple[str, Names]) -> bool:
    return len({sheets[table].group_of(row) for table, row in (one, other)}) == 1


def _throughput(sheets: Mapping[str, Sheet]) -> Iterator[Finding]:
    """Tokens over throughput are the hours of all devices; TT and the hours stand in tables of the same training."""
    hours = {}
    for name, sheet in sheets.items():
        for row in sheet.figures:
            figure = sheet.value(row, "GPU_hours")
            if figure:
                hours[name, row] = figure.value
    for (name, row), printed_h in hours.items():
        same = next((group for group in _ONE_TRAINING if (name, row) in group), {(name, row)})
        for table, other in sorted(same):
            theirs = sheets.get(table)
            figure = theirs.value(other, _THROUGHPUT) if theirs else None
            size = theirs.sizes.get(other) if theirs else None
            if figure is None or size is None:
                continue
            implied_h = TOKENS / (figure.value * size * 1e9) * DEVICES / 3600
            if not math.isclose(implied_h, printed_h, rel_tol=0.05):
                message = (
                    f"{figure.value:g} tokens per parameter and second are {implied_h:.3g} device hours for "
                    f"{TOKENS:.3g} tokens on {DEVICES} devices, and {printed_h:.4g} are printed: "
                    f"{printed_h / implied_h:.3g} times as many"
                )
                yield Finding("throughput", table, " ".join(other), _THROUGHPUT, message)


def _samples(sheet: Sheet) -> Iterator[Finding]:
    """Methods that are compared on one model learn from as many samples in a step."""
    for group, rows in sheet.groups().items():
        samples = {
            sheet.technique_of(row): round(figure.value, 1) for row in rows if (figure := sheet.value(row, _SAMPLES))
        }
        rounded = {method: round(value) for method, value in samples.items()}
        limits = [figure for row in rows if (figure := sheet.value(row, _SAMPLES))]
        if max((one.lowest for one in limits), default=0) <= min((one.highest for one in limits), default=0):
            # How they were read leaves room for one number.
            continue
        for finding in check_equal("samples per step", rounded):
            yield Finding("comparable", sheet.name, group, "AL_s_per_iter", finding.message)


def _constant_ratios(sheet: Sheet) -> Iterator[Finding]:
    """Two techniques whose measurements stand in one ratio in every group were not both measured."""
    techniques = list(dict.fromkeys(sheet.technique_of(row) for row in sheet.figures))
    for column in sheet.better:
        if column not in sheet.costs or column == "MCR":
            continue
        for one, other in combinations(techniques, 2):
            pairs = [
                (sheet.figures[row][column], sheet.figures[partner][column])
                for row in sheet.figures
                if sheet.technique_of(row) == other and column in sheet.figures[row]
                if (partner := _in_group(sheet, row, one)) is not None and column in sheet.figures[partner]
            ]
            if len(pairs) < _FEWEST_ROWS or any(figure.low is None for pair in pairs for figure in pair):
                continue
            low = max(ours.lowest / theirs.highest for ours, theirs in pairs)
            high = min(ours.highest / theirs.lowest for ours, theirs in pairs)
            if low <= high:
                message = f"{other} is {(low + high) / 2:.3f} x {one} in each of {len(pairs)} groups"
                yield Finding("constant_ratio", sheet.name, other, column, message)


def _in_group(sheet: Sheet, row: Names, technique: str) -> Names | None:
    rows = sheet.groups()[sheet.group_of(row)]
    return next((other for other in rows if sheet.technique_of(other) == technique), None)


def _nominal_compression(sheets: Mapping[str, Sheet]) -> Iterator[Finding]:
    """A rate that is the nominal bits' ratio times the scores' was not made of the bytes that Eq 9 asks for."""
    sheet = sheets.get("table9")
    if sheet is None:
        return
    nominal, rows = [], []
    for row in sheet.figures:
        base = _in_group(sheet, row, "bfloat16")
        rate, score = sheet.value(row, "MCR"), sheet.value(row, "average_performance")
        of_base = sheet.value(base, "average_performance") if base else None
        if sheet.technique_of(row) != "int4" or rate is None or score is None or of_base is None:
            continue
        if sheet.published[row, "MCR"].code == "C":
            # Computed in this way to begin with.
            continue
        rows.append(row)
        if math.isclose(rate.value, 4 * score.value / of_base.value, abs_tol=0.0015):
            nominal.append(row)
    if rows and len(nominal) == len(rows):
        message = f"4 x the ratio of scores in each of {len(rows)} printed rows: nominal bits, no bytes of weights"
        yield Finding("nominal_compression", sheet.name, "int4", "MCR", message)


def _scores(sheets: Mapping[str, Sheet]) -> Iterator[Finding]:
    """Scores within 0 to 1, and no quantised model far below its base."""
    for sheet in sheets.values():
        if sheet.keys != ("model", "precision"):
            continue
        for column in (name for name in sheet.better if name not in sheet.costs):
            for row in sheet.figures:
                figure, base = sheet.value(row, column), _in_group(sheet, row, "bfloat16")
                if figure is None:
                    continue
                of_base = sheet.value(base, column) if base else None
                found = check_scores({column: figure.value})
                if sheet.technique_of(row) == "int4" and of_base is not None:
                    found += check_quantized_score(figure.value, of_base.value)
                for finding in found:
                    yield Finding(finding.rule, sheet.name, " ".join(row), column, finding.message)


def _latency_against_throughput(sheets: Mapping[str, Sheet]) -> Iterator[Finding]:
    """More tokens in a second and more time for the same requests exclude each other, at equal lengths."""
    sheet = sheets.get("table9")
    if sheet is None:
        return
    for row in sheet.figures:
        base = _in_group(sheet, row, "bfloat16")
        if base is None or base == row:
            continue
        ratios = []
        for column in ("IT_tokens_per_s", "AL_sum_ms"):
            ours, theirs = sheet.value(row, column), sheet.value(base, column)
            ratios.append(ours.value / theirs.value if ours and theirs else None)
        throughput, latency = ratios
        if throughput is None or latency is None or (throughput - 1) * (latency - 1) <= 0:
            continue
        message = (
            f"against bfloat16, tokens/s change by {throughput - 1:+.1%} and the summed latency by {latency - 1:+.1%}"
        )
        yield Finding("latency_against_throughput", sheet.name, " ".join(row), "AL_sum_ms", message)
