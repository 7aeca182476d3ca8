"""What earlier builds took, as rates for the nodes that are to do: from provenance, records and payloads."""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effllm.errors import UserError
from effllm.models.costs.shapes import shape_of
from effllm.planning.shapes import read_config
from effllm.runtime.artifact import MANIFEST, Artifact
from effllm.stages import STAGES
from effllm.stages.cost import Cost, NodeContext, Unknown
from effllm.stages.history import readable
from effllm.training.settings import PretrainingRun

# Planning reads results of few commands: models of all of them would slow every one.
if TYPE_CHECKING:
    from effllm.models.costs.shapes import Shape
    from effllm.results.provenance import Provenance

GB = 1e9
# What reading raises where a figure is missing or of another type.
_OF_ANOTHER_FORMAT = (KeyError, TypeError, AttributeError, ValueError, ArithmeticError)


@dataclass(frozen=True)
class Device:
    """A device that artifacts were built on; bytes of its memory where they say."""

    name: str
    memory_b: float | None = None


@dataclass(frozen=True)
class Sample:
    """One earlier build.

    device: None where nothing tells it. work_s: device-seconds that grow with the cost's work; overhead_s: wall seconds
    that do not (starting, loading, scoring held-out text). power_w, memory_b: of one device while it worked.
    """

    name: str
    stage: str
    cost: Cost
    device: Device | None
    work_s: float
    overhead_s: float
    power_w: float | None
    memory_b: float | None
    disk_b: int

    @property
    def wall_s(self) -> float:
        """Seconds from start to end, of all processes that worked on it."""
        return self.overhead_s + self.work_s / max(self.cost.devices, 1)


class RunHistory:
    """The samples below a results directory, by stage, read when a stage is first asked for.

    without: names of artifacts that are left out. before: only builds that had ended by then, in UTC.
    """

    def __init__(self, results: str, without: Collection[str] = (), before: str | None = None):
        self._results = Path(results)
        self._without, self._before = frozenset(without), before
        self._samples: dict[str, list[Sample]] = {}
        self._hosts: dict[str, Device] | None = None

    def of(self, stage: str) -> Sequence[Sample]:
        """Every whole earlier build of a stage."""
        if stage not in self._samples:
            self._samples[stage] = list(self._read(stage))
        return self._samples[stage]

    def nearest(self, stage: str, cost: Cost, device: str | None) -> Sample | None:
        """The build of the same kind whose work is nearest; on `device`, if the stage holds one."""
        fitting = [
            sample
            for sample in self.of(stage)
            if sample.cost.kind == cost.kind
            and (cost.devices == 0 or (sample.device is not None and sample.device.name == device))
        ]
        work = cost.work
        if work is None:
            return next((sample for sample in fitting if sample.cost.work is None), None)
        worked = [(sample.cost.work, sample) for sample in fitting if sample.cost.work is not None]
        _, nearest = min(worked, key=lambda pair: abs(math.log(pair[0] / work)), default=(None, None))
        return nearest

    def power_w(self, stage: str, device: str | None) -> Sample | None:
        """A build of the stage on the device during which power was measured."""
        found = (
            s for s in self.of(stage) if s.power_w is not None and s.device is not None and s.device.name == device
        )
        return next(found, None)

    def devices(self, stages: Sequence[str]) -> list[Device]:
        """Devices of the builds of these stages, each once, the most used first."""
        seen: dict[str, list[Device]] = {}
        for stage in stages:
            for sample in self.of(stage):
                if sample.cost.devices and sample.device is not None:
                    seen.setdefault(sample.device.name, []).append(sample.device)
        ordered = sorted(seen.values(), key=len, reverse=True)
        return [max(devices, key=lambda device: device.memory_b or 0.0) for devices in ordered]

    def _read(self, stage: str) -> Iterator[Sample]:
        for path in sorted(self._results.glob(f"{stage}/*/{MANIFEST}")):
            try:
                artifact = Artifact.open(path)
                history = _provenance(artifact.directory)
                if artifact.manifest.status != "ok" or history is None or self._is_left_out(artifact, history):
                    continue
                sample = _sample(artifact, history)
                if sample.device is None and sample.cost.devices and history.host:
                    sample = replace(sample, device=self._device_of_host(history.host.name))
                yield sample
            except (UserError, *_OF_ANOTHER_FORMAT):
                # An artifact of another format says nothing about time; `effllm verify` names damaged ones.
                continue

    def _is_left_out(self, artifact: Artifact, history: "Provenance") -> bool:
        if f"{artifact.manifest.stage}/{artifact.manifest.id}" in self._without:
            return True
        return self._before is not None and (history.end is None or history.end > self._before)

    def _device_of_host(self, host: str) -> Device | None:
        """The device that the builds with telemetry on this host had, if they all had the same one."""
        if self._hosts is None:
            seen: dict[str, dict[str, Device]] = {}
            for path in sorted(self._results.glob(f"[!.]*/*/{MANIFEST}")):
                history = _provenance(path.parent)
                try:
                    device = _device(path.parent, history) if history else None
                    if history and history.host and device:
                        seen.setdefault(history.host.name, {})[device.name] = device
                except _OF_ANOTHER_FORMAT:
                    continue
            self._hosts = {name: next(iter(found.values())) for name, found in seen.items() if len(found) == 1}
        return self._hosts.get(host)


def _sample(artifact: Artifact, history: "Provenance") -> Sample:
    manifest = artifact.manifest
    stage = STAGES[manifest.stage]
    cost = stage.cost(_context(artifact))
    wall_s = history.wall_s
    measured = stage.measured_work(artifact)
    telemetry, devices = measured.telemetry, measured.devices
    # Without a record of the part that grows with the work, all of the time is taken to.
    work_s = wall_s if measured.work_s is None else measured.work_s
    memory_gb = (telemetry.memory_process_peak_gb or telemetry.memory_device_peak_gb) if telemetry else None
    # Of several devices the figures are sums.
    spread = len(telemetry.devices or [None]) if telemetry else 1
    disk_b = sum(digest.size for digest in manifest.payload.values())
    disk_b += sum(record.size for record in history.records.values())
    return Sample(
        name=f"{manifest.stage}/{manifest.id}",
        stage=manifest.stage,
        cost=cost,
        device=_device(artifact.directory, history),
        work_s=work_s * (cost.devices if cost.spreads else devices),
        overhead_s=max(0.0, wall_s - work_s * measured.share),
        power_w=telemetry.power_avg_w / spread if telemetry and telemetry.power_avg_w is not None else None,
        memory_b=None if memory_gb is None else memory_gb * GB / spread,
        disk_b=disk_b,
    )


def _device(directory: Path, history: "Provenance") -> Device | None:
    """The device of a build: as its figures say, as its telemetry's instrument says, or the processor."""
    from effllm.results.profile import Profile
    from effllm.results.serving import Serving
    from effllm.results.telemetry import WindowsRecord
    from effllm.results.training import Efficiency

    told = readable(Efficiency, directory) or readable(Profile, directory) or readable(Serving, directory)
    if told and told.device.name is not None:
        memory_gb = told.device.memory_total_gb
        return Device(told.device.name, memory_gb * GB / told.device.count if memory_gb else None)
    windows = readable(WindowsRecord, directory)
    if windows is None:
        return None
    facts = windows.sources["nvml"].facts if "nvml" in windows.sources else {}
    if "name" in facts:
        memory_b = facts.get("memory_total_b")
        return Device(facts["name"], memory_b / len(facts.get("devices", "1")) if memory_b else None)
    return Device(history.host.cpu) if windows.device == "cpu" and history.host else None


def _context(artifact: Artifact) -> NodeContext:
    """The artifact as its stage sees a node: with the slice of the study that it was built from."""
    manifest = artifact.manifest
    results = artifact.directory.parent.parent

    def parent_config(name: str) -> dict[str, Any] | None:
        found = artifact
        for part in name.split("."):
            if part not in found.manifest.parents:
                return None
            parent = found.manifest.parents[part]
            found = Artifact.open(results / parent.stage / parent.id / MANIFEST)
            # It may have been rebuilt since, to another specification: then it says nothing about this build.
            if found.sha256 != parent.sha256:
                return None
        return found.manifest.spec["config"]

    def shape() -> "Shape":
        own = artifact.directory / "model"
        if own.is_dir():
            return read_config(own)
        if manifest.stage == "pretrain":
            # Synthetic tokens teach nothing, and no model is kept.
            run = PretrainingRun.model_validate(dict(manifest.spec["config"]))
            words = run.architecture.vocab_size or (parent_config("tokens") or {}).get("vocab_size")
            if words is None:
                raise Unknown(f"the vocabulary of {manifest.stage}/{manifest.id} is not known any more")
            return shape_of(run.architecture, words)
        if "model" not in manifest.parents:
            raise Unknown(f"{manifest.stage}/{manifest.id} has no model")
        parent = manifest.parents["model"]
        return read_config(results / parent.stage / parent.id / "model")

    def parent_id(name: str) -> str | None:
        return manifest.parents[name].id if name in manifest.parents else None

    return NodeContext(manifest.id, manifest.spec["config"], shape, parent_config, parent_id)


def _provenance(directory: Path) -> "Provenance | None":
    from effllm.results.provenance import Provenance

    return readable(Provenance, directory)
