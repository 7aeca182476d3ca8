"""Where the readings come from: one file per instrument, one registry that opens them by name.

To add a source, write a class that satisfies `effllm.telemetry.sources.base.Source` and name it in `OPENERS`.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from effllm.telemetry.sources.base import NullSource, Source, SourceUnavailable
from effllm.telemetry.sources.several import SeveralDevices

OPENERS = {
    "nvml": ("effllm.telemetry.sources.nvml", "NvmlSource"),
    "rapl": ("effllm.telemetry.sources.rapl", "RaplSource"),
    "hwmon": ("effllm.telemetry.sources.hwmon", "HwmonSource"),
    "cray_pm": ("effllm.telemetry.sources.cray", "CraySource"),
    "host": ("effllm.telemetry.sources.host", "HostSource"),
    "load": ("effllm.telemetry.sources.load", "LoadSource"),
    "torch_allocator": ("effllm.telemetry.sources.allocator", "TorchAllocatorSource"),
}
"""Name of each source -> (module, class). Modules are imported only when the source is opened."""

SOURCES_OF_DEVICE = {
    "cpu": ("rapl", "cray_pm", "hwmon", "load", "host"),
    "cuda": ("nvml", "rapl", "cray_pm", "hwmon", "torch_allocator", "load", "host"),
}
"""Sources that apply to a kind of device, in the order in which they are read when a window opens."""

OPTIONS_OF_SOURCE = {
    "nvml": ("uuid", "root_pid"),
    "host": ("root_pid", "exclude"),
    "load": ("root_pid",),
    "torch_allocator": ("device",),
}
"""Options each source's constructor takes from the session; the others take none."""

_NAMES_DEVICES = {"nvml": "uuid", "torch_allocator": "device"}


def open_source(name: str, options: Mapping[str, Any]) -> Source:
    """Open the source called `name`; a `NullSource` with the reason where this machine does not have it.

    `options` may hold options of other sources too; each source gets its own. Where the device is a list, the source is
    that of all these devices. Raises ValueError for a name that is no source at all.
    """
    if name not in OPENERS:
        raise ValueError(f"there is no telemetry source {name!r}; choose from {', '.join(OPENERS)}")
    module, attribute = OPENERS[name]
    own = {key: options[key] for key in OPTIONS_OF_SOURCE.get(name, ()) if key in options}
    try:
        opener = getattr(import_module(module), attribute)
        key = _NAMES_DEVICES.get(name)
        if key is None or not isinstance(own.get(key), list):
            return opener(**own)
        return SeveralDevices([opener(**own | {key: device}) for device in own[key]])
    except SourceUnavailable as error:
        return NullSource(name, str(error))
