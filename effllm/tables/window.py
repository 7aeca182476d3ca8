"""Cells from the telemetry of a window: each a value, and the reason why not where it is None."""

from collections.abc import Mapping

from effllm.results.evaluation import Evaluation
from effllm.results.telemetry import Finding, TelemetrySummary
from effllm.tables.artifacts import Result
from effllm.tables.cells import Cell
from effllm.telemetry.validity import DISTURBED, check_disturbance

DEVICE = "device"
HOST = "host process tree"


class Window:
    """A summary of telemetry, or `absent`, the reason why there is none."""

    def __init__(self, summary: TelemetrySummary | None, absent: str | None = None):
        self.summary = summary
        self.absent = absent

    def figure(self, name: str) -> Cell:
        """A figure of the summary under its own name."""
        if self.summary is None:
            return None, self.absent
        return self.summary.cell(name)

    def memory_scope(self) -> Cell:
        """Whose memory AMU is: the accelerator's, or without one the process tree's on the host."""
        if self.summary is None:
            return None, self.absent
        return (HOST if self.summary.memory_device_avg_gb is None else DEVICE), None

    def memory(self, kind: str) -> Cell:
        """Memory of that scope in GB, `avg` or `peak`."""
        return self.figure(f"memory_{self._memory()}_{kind}_gb")

    def memory_fraction(self) -> Cell:
        """Average memory over the total of that scope."""
        total, why = self.figure("memory_total_gb" if self._memory() == "device" else "memory_host_total_gb")
        used, why_used = self.memory("avg")
        return (used / total if used is not None and total is not None else None), why_used or why

    def _memory(self) -> str:
        return "host" if self.memory_scope()[0] == HOST else "device"


def disturbances(evaluations: Mapping[str, Result[Evaluation]]) -> list[Finding]:
    """What disturbed the evaluations, by benchmark."""
    return [
        Finding(DISTURBED, finding.severity, finding.message.replace(DISTURBED, f"{DISTURBED}: evaluate {id}", 1))
        for id, result in evaluations.items()
        if result.content
        for finding in check_disturbance(result.content.telemetry)
    ]
