"""Cells that say on which card and with which libraries an artifact was measured."""

import hashlib
from collections.abc import Iterable
from typing import Any

from effllm.results.provenance import Provenance
from effllm.results.telemetry import DeviceInfo
from effllm.tables.artifacts import Result
from effllm.tables.cells import Cell

# What sets the pace of a model: a version of another package changes no row's figures.
_PACKAGES = ("torch", "transformers", "gptqmodel")
_DIGITS = 12


def device_id(device: DeviceInfo) -> Cell:
    """The first digits of the sha256 of a GPU's UUID: tells cards of one kind apart, and gives no card away."""
    if device.uuid is None:
        return None, "the device has no UUID"
    return hashlib.sha256(device.uuid.encode()).hexdigest()[:_DIGITS], None


def software(results: Iterable[Result[Any]]) -> Cell:
    """Versions of the libraries behind artifacts, such as `torch 2.11.0, transformers 5.23.0`; several by semicolons.

    They are in the provenance of each, which its digest does not cover.
    """
    texts: dict[str, None] = {}
    for result in results:
        if result.content is None:
            return None, result.absent
        packages = Provenance.read(result.artifact.directory).packages
        versions = [f"{name} {packages[name]}" for name in _PACKAGES if packages.get(name)]
        if not versions:
            return None, f"the provenance of {result.manifest.stage} {result.manifest.id} names no versions"
        texts[", ".join(versions)] = None
    return "; ".join(texts) or None, "no artifact is behind this row"
