"""What this machine offers to measure with, and which device a run is on: provenance, and text for a user."""

import math
import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from effllm.errors import UserError
from effllm.results.telemetry import DeviceInfo
from effllm.telemetry.sources import OPENERS, open_source
from effllm.telemetry.sources.base import NullSource, Source, SourceUnavailable
from effllm.telemetry.sources.host import descendants, memory_limit_b, usable_cores
from effllm.telemetry.sources.nvml import load_nvml
from effllm.telemetry.sources.nvml_device import torch_uuid, visible_uuid

GB = 1e9

FIGURES_OF_SOURCE = {
    "nvml": "memory_device_*, memory_process_*, util_nvml, power_*, energy_*, sm_clock_avg_mhz, temperature_max_c, "
    "throttle_reasons (of a CUDA device)",
    "rapl": "energy_j, power_avg_w of a CPU run; host_energy_j beside a GPU",
    "hwmon": "energy_j (integral of power), power_* of a CPU run on Grace; host_energy_j beside a GPU",
    "cray_pm": "energy_j, power_* of a CPU run on an HPE Cray EX node; host_energy_j beside a GPU",
    "host": "memory_host_*, util_cpu: the workload's process tree",
    "load": "other_cpu_fraction, steal_fraction, idle_cpu_fraction, *_pressure_fraction, throttled_*: what others did "
    "on the cores of the workload",
    "torch_allocator": "allocator_*: what torch's caching allocator holds on a CUDA device",
}
"""The summary figures that each source makes possible."""


def nvml_uuid(device: str) -> str:
    """UUID of a CUDA device as NVML spells it: from torch where it sees the device, else from the environment.

    Raises SourceUnavailable with the reason where there is no driver or the device is not visible.
    """
    nvml = load_nvml()
    try:
        return torch_uuid(device) or visible_uuid(nvml, device, os.environ)
    finally:
        nvml.nvmlShutdown()


def available_sources(device: str | None = None) -> list[str]:
    """Names of the sources that this machine has. `device` (default: the first CUDA device, if any) as in Telemetry."""
    opened = _open_all(device or "cuda")
    return [name for name, source in opened.items() if source.quantities]


def _open_all(device: str) -> dict[str, Source]:
    """Every source, opened for `device` and closed again; null ones hold the reason."""
    options: dict[str, Any] = {"device": device}
    opened: dict[str, Source] = {}
    for name in OPENERS:
        try:
            if name == "nvml" and device.startswith("cuda"):
                options["uuid"] = nvml_uuid(device)
            opened[name] = open_source(name, options)
        except SourceUnavailable as error:
            opened[name] = NullSource(name, str(error))
        opened[name].close()
    return opened


def joint_info(devices: Sequence[str]) -> DeviceInfo:
    """Who and what the devices of one job are together: memory and limits of power are sums.

    Raises SourceUnavailable as `device_info` does, and `UserError` where they are of several models.
    """
    found = [device_info(device) for device in devices]
    first = found[0]
    if len(found) == 1:
        return first
    names = sorted({str(info.name) for info in found})
    if len(names) > 1:
        raise UserError(
            f"a model would be spread over GPUs of {len(names)} models ({', '.join(names)}), whose figures are of "
            "none: show the job GPUs of one model by CUDA_VISIBLE_DEVICES."
        )

    def total(key: str) -> float | None:
        values = [getattr(info, key) for info in found]
        return None if None in values else math.fsum(values)

    return first.model_copy(
        update={
            "device": ",".join(devices),
            "count": len(found),
            "uuid": ",".join(str(info.uuid) for info in found),
            "processes": None
            if any(i.processes is None for i in found)
            else sorted({p for i in found for p in i.processes or ()}),
            **{key: total(key) for key in ("memory_total_gb", "power_limit_w", "power_limit_default_w")},
        }
    )


def device_info(device: str = "cpu") -> DeviceInfo:
    """Who and what the device is. Raises SourceUnavailable where a CUDA device cannot be found at all."""
    if device == "cpu":
        return DeviceInfo(
            device=device,
            kind="cpu",
            name=_cpu_name(),
            cores_total=os.cpu_count(),
            cores_usable=usable_cores(),
            memory_total_gb=memory_limit_b() / GB,
            kernel=platform.release(),
        )
    uuid = nvml_uuid(device)
    nvml = load_nvml()
    try:
        return DeviceInfo(device=device, kind="cuda", **cuda_info(nvml, uuid))
    finally:
        nvml.nvmlShutdown()


def cuda_info(nvml: Any, uuid: str) -> dict[str, Any]:
    """The CUDA part of `device_info`, asked of an initialised pynvml module."""
    handle = nvml.nvmlDeviceGetHandleByUUID(uuid.encode())
    questions: dict[str, Callable[[], Any]] = {
        "name": lambda: nvml.nvmlDeviceGetName(handle),
        "driver": nvml.nvmlSystemGetDriverVersion,
        "cuda_driver_version": nvml.nvmlSystemGetCudaDriverVersion,
        "memory_total_gb": lambda: nvml.nvmlDeviceGetMemoryInfo(handle).total / GB,
        "power_limit_w": lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1e3,
        "power_limit_default_w": lambda: nvml.nvmlDeviceGetPowerManagementDefaultLimit(handle) / 1e3,
        "sm_clock_max_mhz": lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM),
        "memory_clock_max_mhz": lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_MEM),
        "persistence_mode": lambda: bool(nvml.nvmlDeviceGetPersistenceMode(handle)),
        "mig": lambda: bool(nvml.nvmlDeviceGetMigMode(handle)[0]),
        "ecc": lambda: bool(nvml.nvmlDeviceGetEccMode(handle)[0]),
        "processes": lambda: _foreign_pids(nvml, handle),
    }
    info: dict[str, Any] = {"uuid": uuid}
    reasons = {}
    for key, ask in questions.items():
        try:
            answer = ask()
        except nvml.NVMLError as error:
            info[key], reasons[key] = None, f"NVML answers: {error}"
        else:
            info[key] = answer.decode() if isinstance(answer, bytes) else answer
    return {**info, "reasons": reasons}


def _foreign_pids(nvml: Any, handle: Any) -> list[int]:
    own = set(descendants(os.getpid()))
    return sorted(
        process.pid for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle) if process.pid not in own
    )


def _cpu_name() -> str:
    """Model of the processor as the kernel gives it, or the architecture where it gives none (as on Arm)."""
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.is_file() else ():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.machine()


def describe_devices_json(device: str = "cuda") -> dict[str, Any]:
    """Everything this machine can measure: the processor, the CUDA device if any, and each source.

    `sources` maps a name to `available`, `reason` (why not), `figures` (what it makes possible), `quantities`
    (name -> unit and meaning) and `missing` (name -> reason); `energy_scope` names the hardware whose energy it tells.
    """
    try:
        cuda: dict[str, Any] | None = device_info(device).model_dump(exclude_unset=True)
        cuda_reason = None
    except SourceUnavailable as error:
        cuda, cuda_reason = None, str(error)
    sources = {}
    for name, source in _open_all(device).items():
        sources[name] = {
            "available": bool(source.quantities),
            "reason": getattr(source, "reason", None),
            "figures": FIGURES_OF_SOURCE[name],
            "quantities": {key: f"{q.meaning} [{q.unit}]" for key, q in source.quantities.items()},
            "missing": dict(source.missing),
            "energy_scope": source.meter and (source.meter.counter_scope or source.meter.power_scope),
        }
    return {
        "cpu": device_info("cpu").model_dump(exclude_unset=True),
        "cuda": cuda,
        "cuda_reason": cuda_reason,
        "sources": sources,
    }


def describe_devices(device: str = "cuda") -> str:
    """The same as text for a terminal."""
    found = describe_devices_json(device)
    cpu, cuda = found["cpu"], found["cuda"]
    lines = [f"CPU   {cpu['name']}: {cpu['cores_usable']:g} usable cores, {cpu['memory_total_gb']:.1f} GB"]
    if cuda is None:
        lines.append(f"CUDA  none: {found['cuda_reason']}")
    else:
        lines.append(f"CUDA  {cuda['name']}: {cuda['memory_total_gb']:.1f} GB, {cuda['uuid']}, driver {cuda['driver']}")
    for name, source in found["sources"].items():
        if not source["available"]:
            lines += ["", f"{name}: not available: {source['reason']}", f"  would give {source['figures']}"]
            continue
        lines += ["", f"{name}: gives {source['figures']}"]
        if source["energy_scope"]:
            lines.append(f"  energy covers: {source['energy_scope']}")
        lines += [f"  {key:24} {meaning}" for key, meaning in source["quantities"].items()]
        lines += [f"  {key:24} not offered: {reason}" for key, reason in source["missing"].items()]
    if not any(source["energy_scope"] for source in found["sources"].values()):
        lines += ["", "No instrument here measures energy: energy_j will be None. It is never estimated."]
    return "\n".join(lines)
