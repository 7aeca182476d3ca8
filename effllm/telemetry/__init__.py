"""Telemetry: memory, utilisation, power and energy of a workload, over named windows of its run.

Importing this package is cheap: names are resolved on first use, so that the sampler process (which runs
`python -m effllm.telemetry.sampler`) loads only what it needs, and neither torch nor transformers is imported
until a CUDA device is asked for.
"""

from importlib import import_module
from typing import Any

_HOME_OF = {
    "Telemetry": "effllm.telemetry.session",
    "WindowRecord": "effllm.telemetry.windows",
    "available_sources": "effllm.telemetry.devices",
    "describe_devices": "effllm.telemetry.devices",
    "describe_devices_json": "effllm.telemetry.devices",
    "device_info": "effllm.telemetry.devices",
    "joint_info": "effllm.telemetry.devices",
}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)
