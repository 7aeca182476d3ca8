"""`hub`: a hub on loopback that the package uses in place of the real one, and `waits`: how long it would have waited.

A conftest takes them in: `from tests.hub.fixtures import hub, waits`.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from effllm.hub import patience
from tests.hub.server import Hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float]) -> Iterator[Hub]:
    """A hub without repositories, an empty cache and no token."""
    with Hub() as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield served


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds of the waits between attempts, none of which is waited."""
    seconds: list[float] = []
    monkeypatch.setattr(patience, "sleep", seconds.append)
    return seconds


def environment(hub: Hub, home: Path) -> dict[str, str]:
    """What makes a program of its own use `hub`: variables to add to the environment."""
    return {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": str(home), "HF_TOKEN": ""}
