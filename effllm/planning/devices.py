"""The device that a plan is for."""

from effllm.errors import UserError
from effllm.fields import suggestion
from effllm.planning.run_history import RunHistory
from effllm.stages import STAGES
from effllm.telemetry.peaks import PEAKS, memory_b


def device_of(earlier: RunHistory, name: str | None, is_described: bool) -> tuple[str | None, str, float | None]:
    """Name, where it comes from, and memory in bytes where a table or an earlier build tells it."""
    if name is not None and name in PEAKS:
        return name, "--device", memory_b(name)
    built_on = earlier.devices(list(STAGES))
    if name is not None:
        match = next((device for device in built_on if device.name == name), None)
        if match is None and is_described:
            return name, "--device", None
        if match is None and " MIG " in name:
            raise UserError(
                f"--device {name!r} is a part of a GPU, without peaks of its own: give --device-memory-gb too, and "
                "times are those of earlier builds on it."
            )
        if match is None:
            known = [*PEAKS, *(device.name for device in built_on)]
            raise UserError(
                f"--device {name!r} is in no table and no earlier build was on it; {suggestion(name, known)}; for "
                "another one give --device-memory-gb too."
            )
        return name, "--device", match.memory_b
    if not built_on:
        return None, "no earlier build names one: give --device", None
    first = built_on[0]
    return first.name, "of earlier builds", memory_b(first.name) or first.memory_b
