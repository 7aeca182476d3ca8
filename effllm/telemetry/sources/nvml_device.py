"""Which NVML device a CUDA device is: NVML ignores CUDA_VISIBLE_DEVICES, so they are matched by UUID.

Upstream: "CUDA Environment Variables" in the CUDA C++ Programming Guide (CUDA_VISIBLE_DEVICES,
CUDA_DEVICE_ORDER).
"""

from collections.abc import Mapping
from typing import Any

from effllm.telemetry.sources.base import SourceUnavailable


def cuda_index(device: str) -> int:
    """Index among the visible devices that "cuda" (0) or "cuda:N" names; ValueError for anything else."""
    kind, _, index = device.partition(":")
    if kind != "cuda" or (index and not index.isdigit()):
        raise ValueError(f"device {device!r} is neither 'cuda' nor 'cuda:N'")
    return int(index or 0)


def torch_uuid(device: str) -> str | None:
    """UUID of a CUDA device as torch sees it, in NVML's spelling; None where torch sees none or is too old."""
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available() or cuda_index(device) >= torch.cuda.device_count():
        return None
    uuid = getattr(torch.cuda.get_device_properties(cuda_index(device)), "uuid", None)
    return None if uuid is None else f"GPU-{uuid}"


def visible_uuid(nvml: Any, device: str, environ: Mapping[str, str]) -> str:
    """UUID of CUDA device `device` worked out from the environment, without CUDA.

    Raises SourceUnavailable as `visible_uuids` does, and where the device is not visible.
    """
    visible = visible_uuids(nvml, environ)
    index = cuda_index(device)
    if index >= len(visible):
        listed, count = environ.get("CUDA_VISIBLE_DEVICES"), nvml.nvmlDeviceGetCount()
        raise SourceUnavailable(
            f"{device} is not visible: CUDA_VISIBLE_DEVICES={listed!r} shows {len(visible)} of {count} devices"
        )
    return visible[index]


def visible_uuids(nvml: Any, environ: Mapping[str, str]) -> list[str]:
    """UUIDs of the devices that CUDA shows in this environment, in its order.

    `nvml` is the initialised pynvml module. CUDA_VISIBLE_DEVICES may hold indices, UUIDs or unique beginnings
    of UUIDs, and an unknown entry hides itself and all after it. Indices count in NVML's order only under
    CUDA_DEVICE_ORDER=PCI_BUS_ID or where all devices are of one model. Raises SourceUnavailable with a remedy
    otherwise.
    """
    handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
    uuids = [_text(nvml.nvmlDeviceGetUUID(handle)) for handle in handles]
    listed = environ.get("CUDA_VISIBLE_DEVICES")
    entries = [str(i) for i in range(len(uuids))] if listed is None else listed.split(",")
    visible: list[str] = []
    by_index = False
    for entry in (entry.strip() for entry in entries):
        if entry.startswith("MIG-"):
            visible.append(entry)
            continue
        if entry.isdigit():
            by_index = True
            matches = uuids[int(entry) : int(entry) + 1]
        else:
            matches = [uuid for uuid in uuids if entry and uuid.startswith(entry)]
        if len(matches) != 1:
            break
        visible.append(matches[0])
    models = {_text(nvml.nvmlDeviceGetName(handle)) for handle in handles}
    if by_index and len(models) > 1 and environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        raise SourceUnavailable(
            "devices of several models are numbered by speed, which NVML does not know: "
            "set CUDA_DEVICE_ORDER=PCI_BUS_ID, or give UUIDs in CUDA_VISIBLE_DEVICES"
        )
    return visible


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
