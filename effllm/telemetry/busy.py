"""Whether others are at work on this machine right now: a sentence before time is spent on a measurement."""

import time

from effllm.telemetry.devices import device_info
from effllm.telemetry.sources.base import SourceLost, SourceUnavailable
from effllm.telemetry.sources.load import LoadSource

# Ten ticks of a core or more: enough to tell an idle machine from one with a busy process.
_LOOK_S = 0.25
_BUSY = 0.15


def busy_sentence(device: str = "cpu") -> str | None:
    """What others do on the usable cores and the device; None where nothing is seen of them."""
    told = list(filter(None, [_cores_sentence(), _device_sentence(device)]))
    return (
        f"this machine is busy: {'; '.join(told)}; what is measured now may be invalid as disturbed" if told else None
    )


def warn_if_busy(device: str, label: str) -> None:
    """Print the sentence, if any, to the terminal of the run; `label` says what is about to be measured."""
    if sentence := busy_sentence(device):
        print(f"progress: {label}: {sentence}", flush=True)


def _cores_sentence() -> str | None:
    try:
        source = LoadSource()
        before, start = source.read(), time.monotonic()
        time.sleep(_LOOK_S)
        after = source.read()
    except (SourceUnavailable, SourceLost):
        return None
    seconds = (time.monotonic() - start) * source.facts["cores"]
    rise = {key: after[key] - before[key] for key in after}
    taken = (rise["busy_s"] - rise["own_s"] + rise["steal_s"]) / seconds
    if taken <= _BUSY:
        return None
    return f"others take {taken:.0%} of the time of its {source.facts['cores']} usable cores"


def _device_sentence(device: str) -> str | None:
    if device == "cpu":
        return None
    try:
        others = device_info(device).processes
    except SourceUnavailable:
        return None
    return f"{len(others)} other processes are on {device}" if others else None
