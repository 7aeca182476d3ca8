"""A hub on loopback."""

from tests.hub.fixtures import hub, waits  # noqa: F401
