"""What tables read from one training artifact, whatever it trains."""

from effllm.results.provenance import Provenance
from effllm.results.telemetry import Finding
from effllm.results.training import DiffusionQuality, FinetuningQuality, PretrainingQuality, TuningQuality
from effllm.tables.artifacts import Result
from effllm.tables.cells import Cell
from effllm.tables.conditions import device_id, software
from effllm.tables.window import Window
from effllm.telemetry.validity import (
    check_latency,
    check_mfu,
    check_summary,
    check_wall_time,
)


class Training:
    """One training artifact: its spec, its quality, and the efficiency of its steady steps."""

    def __init__(
        self,
        result: Result[PretrainingQuality]
        | Result[FinetuningQuality]
        | Result[DiffusionQuality]
        | Result[TuningQuality],
    ):
        self.result = result
        self.id = result.manifest.id
        self.recipe = result.manifest.spec["config"]
        summary, why = self.efficiency("telemetry")
        self.window = Window(summary, why)

    def quality(self, key: str) -> Cell:
        """A figure of training.json, which has a reason for each null."""
        content = self.result.content
        return content.cell(key) if content is not None else (None, self.result.absent)

    def efficiency(self, key: str) -> Cell:
        """A figure of records/efficiency.json, which has one too."""
        record = self.result.record
        return record.cell(key) if record is not None else (None, self.result.absent)

    def total_steps(self) -> Cell:
        """Optimizer steps of the whole run."""
        return self.recipe["max_steps"], None

    def steps(self) -> Cell:
        """Optimizer steps that were measured."""
        return self.efficiency("steps") if self.window.summary else (None, self.window.absent)

    def seconds(self) -> Cell:
        """Time that they took, in s."""
        return self.window.figure("duration_s")

    def metered_steps(self) -> Cell:
        """Optimizer steps that the measured energy paid for.

        An accelerator's energy is rank 0's alone, which does its share of every step; a host's covers the ranks of
        one node.
        """
        steps, why = self.steps()
        if steps is None:
            return None, why
        parts = self.recipe["parallel"]["nodes"] if self._is_on_cpu() else self.efficiency("world_size")[0]
        return steps / parts, None

    def hours(self) -> Cell:
        """Time of all steps at the pace of the steady ones, in h: no start-up, checkpoints or scoring."""
        latency_s, why = self.efficiency("latency_s_per_iteration")
        return (latency_s * self.total_steps()[0] / 3600 if latency_s is not None else None), why

    def gpu_hours(self) -> Cell:
        """The same times the number of GPUs."""
        hours, why = self.hours()
        if hours is None:
            return None, why
        if self._is_on_cpu():
            return None, "trained on a CPU"
        return hours * self.efficiency("world_size")[0], None

    def memory_scope(self) -> Cell:
        """Whose memory was measured; of several ranks, the first one's."""
        scope, why = self.window.memory_scope()
        several = scope is not None and self.efficiency("world_size")[0] > 1
        return (f"{scope} of rank 0" if several else scope), why

    def device_name(self) -> Cell:
        """Name of the device that the steps ran on."""
        record = self.result.record
        return (record.device.name if record else None), self.result.absent

    def device_id(self) -> Cell:
        """Which card of its kind the steps of rank 0 ran on."""
        record = self.result.record
        return device_id(record.device) if record else (None, self.result.absent)

    def software(self) -> Cell:
        """Versions of the libraries that it ran with."""
        return software([self.result])

    def kernels(self) -> Cell:
        """The kernels of modules that have a choice of them, and in brackets why it was not the fused one."""
        record = self.result.record
        if record is None:
            return None, self.result.absent
        used = [item for ways in record.kernels.values() for item in ways.items()]
        names = [f"{kernel} ({reason})" if reason else kernel for kernel, reason in used]
        return "; ".join(names) or None, "no module has a choice of kernels"

    def findings(self) -> list[Finding]:
        """What the plausibility rules say of the measurement."""
        if self.result.record is None:
            return []
        if self.window.summary is None:
            return [Finding("efficiency", "warning", f"not measured: {self.window.absent}")]
        summary, record = self.window.summary, self.result.record
        latency_s, resumed_at = record.latency_s_per_iteration, record.resumed_at_step
        wall_s = Provenance.read(self.result.artifact.directory).wall_s
        findings = [
            *check_summary(summary, record.device),
            *check_mfu(record.mfu),
        ]
        if latency_s is not None:
            findings += check_latency(latency_s, record.steps, summary.duration_s)
            findings += check_wall_time(latency_s, self.total_steps()[0] - resumed_at, wall_s)
        if resumed_at:
            message = f"resumed at step {resumed_at}: efficiency is that of the steps after it"
            findings.append(Finding("resumed", "warning", message))
        return findings

    def _is_on_cpu(self) -> bool:
        record = self.result.record
        return record is not None and record.device.kind == "cpu"
