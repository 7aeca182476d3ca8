"""What the records of earlier builds tell plans."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from effllm.errors import UserError

# Few commands read results: models of all of them would slow every one.
if TYPE_CHECKING:
    from effllm.results.base import ResultFile
    from effllm.results.telemetry import TelemetrySummary

_Kind = TypeVar("_Kind", bound="ResultFile")


@dataclass(frozen=True)
class MeasuredWork:
    """Telemetry of the work, its wall seconds if measured apart, and the share of them in the last process."""

    telemetry: "TelemetrySummary | None" = None
    work_s: float | None = None
    devices: int = 1
    share: float = 1.0


def readable(kind: type[_Kind], directory: Path) -> _Kind | None:
    """A file of an artifact; None where there is none, or none of today's form."""
    try:
        return kind.read(directory)
    except UserError:
        return None
