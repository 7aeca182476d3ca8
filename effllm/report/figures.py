"""Figures as people read them: four significant digits, a true minus sign, an interval in brackets."""

import math

NOT_MEASURED = "\N{EN DASH}"
_MINUS = "\N{MINUS SIGN}"
_LARGEST_PLAIN = 1e7
_SMALLEST_PLAIN = 1e-4


def figure_text(value: float | None, digits: int = 4, signed: bool = False) -> str:
    """`value` with so many significant digits, `signed` with a plus where it is positive; a dash for None."""
    if value is None:
        return NOT_MEASURED
    if value == 0:
        return "0"
    size = abs(value)
    if _SMALLEST_PLAIN <= size < _LARGEST_PLAIN:
        decimals = max(0, digits - 1 - math.floor(math.log10(size)))
        text = f"{size:,.{decimals}f}"
        if "." in text:
            text = text.rstrip("0").rstrip(".")
    else:
        mantissa, exponent = f"{size:.{digits - 1}e}".split("e")
        text = f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return (_MINUS if value < 0 else "+" if signed else "") + text


def interval_text(low: float | None, high: float | None, digits: int = 4, signed: bool = False) -> str:
    """`[low, high]`; empty where there is no interval."""
    if low is None or high is None:
        return ""
    return f"[{figure_text(low, digits, signed)}, {figure_text(high, digits, signed)}]"


def percent_text(ratio: float, digits: int = 3) -> str:
    """A ratio as a signed change in percent: 1.35 is `+35 %`."""
    return f"{figure_text(100 * (ratio - 1), digits, signed=True)} %"


def count_text(count: int, one: str, many: str | None = None) -> str:
    """`1 row`, `3 rows`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def listed(names: list[str], most: int = 6) -> str:
    """`a, b and c`; beyond `most` names, how many more there are."""
    if len(names) > most:
        return f"{', '.join(names[:most])} and {len(names) - most} more"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else ""
