"""The GPUs that jobs on this machine may have, and which cores go with each. A MIG slice counts as a GPU."""

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from effllm.telemetry.sources.base import SourceUnavailable
from effllm.telemetry.sources.nvml import load_nvml
from effllm.telemetry.sources.nvml_device import visible_uuids

_WORD = 64


def cores_of_gpus() -> dict[str, list[int]]:
    """Cores by the UUID of each GPU that this process may use, as `split_cores` deals them.

    Raises SourceUnavailable where there is no driver.
    """
    nvml = load_nvml()
    try:
        return split_cores(near_cores(nvml, os.environ), sorted(os.sched_getaffinity(0)))
    finally:
        nvml.nvmlShutdown()


def least_memory_b(uuids: Iterable[str]) -> float | None:
    """Memory of the smallest of these GPUs; None where there is none, or no driver tells."""
    try:
        nvml = load_nvml()
    except SourceUnavailable:
        return None
    try:
        handles = [nvml.nvmlDeviceGetHandleByUUID(uuid.encode()) for uuid in uuids]
        return min((float(nvml.nvmlDeviceGetMemoryInfo(handle).total) for handle in handles), default=None)
    except nvml.NVMLError:
        return None
    finally:
        nvml.nvmlShutdown()


def near_cores(nvml: Any, environ: Mapping[str, str]) -> dict[str, frozenset[int]]:
    """The cores near each GPU by its UUID, of one that is cut into slices for each of these; empty where not told.

    `nvml` is the initialised pynvml module; what CUDA_VISIBLE_DEVICES hides is left out.
    """
    # Without it every device is meant, in whatever order.
    order = {} if "CUDA_VISIBLE_DEVICES" in environ else {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    found: dict[str, frozenset[int]] = {}
    for uuid in visible_uuids(nvml, {**environ, **order}):
        handle = nvml.nvmlDeviceGetHandleByUUID(uuid.encode())
        near = _near(nvml, handle)
        is_cut = not uuid.startswith("MIG-") and _is_cut(nvml, handle)
        found |= dict.fromkeys(_slices(nvml, handle) if is_cut else [uuid], near)
    return found


def split_cores(near: Mapping[str, frozenset[int]], usable: list[int]) -> dict[str, list[int]]:
    """The usable cores dealt to the GPUs: to each an even part of those near it, which no other has.

    Where there are more GPUs than cores near them, these share them.
    """
    groups: dict[frozenset[int], list[str]] = {}
    for uuid, cores in near.items():
        groups.setdefault(cores & frozenset(usable) or frozenset(usable), []).append(uuid)
    dealt: dict[str, list[int]] = {}
    for cores, uuids in groups.items():
        ordered, each = sorted(cores), len(cores) // len(uuids)
        for place, uuid in enumerate(uuids):
            dealt[uuid] = ordered[place * each : (place + 1) * each] if each else ordered
    return {uuid: dealt[uuid] for uuid in near}


def _near(nvml: Any, handle: Any) -> frozenset[int]:
    words = -(-(os.cpu_count() or 1) // _WORD)
    try:
        masks = nvml.nvmlDeviceGetCpuAffinity(handle, words)
    except nvml.NVMLError:
        return frozenset()
    return frozenset(
        word * _WORD + bit for word, mask in enumerate(masks) for bit in range(_WORD) if int(mask) >> bit & 1
    )


def _is_cut(nvml: Any, handle: Any) -> bool:
    """Whether the GPU is in MIG mode, in which it is used by its slices alone."""
    try:
        return bool(nvml.nvmlDeviceGetMigMode(handle)[0])
    except nvml.NVMLError:
        return False


def _slices(nvml: Any, handle: Any) -> Iterator[str]:
    for index in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        try:
            found = nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index))
        except nvml.NVMLError:
            # No slice has this number.
            continue
        yield found.decode() if isinstance(found, bytes) else found
