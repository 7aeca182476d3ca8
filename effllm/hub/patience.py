"""When a request is tried again, and after how long."""

import logging
import re
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from time import sleep
from typing import TypeVar

import httpx2
from huggingface_hub.errors import HfHubHTTPError

log = logging.getLogger(__name__)
ATTEMPTS = 7
"""Failures in a row that brought nothing, after which it gives up."""
ATTEMPTS_UNANSWERED = 3
"""The same for a host that has not answered since the start: it is more likely out of reach than busy."""
LONGEST_WAIT_S = 300
_FIRST_WAIT_S = 1
_Result = TypeVar("_Result")


class InterruptedTransferError(Exception):
    """A transfer that ended early or was not what was asked for; another request can mend it."""


class Patience:
    """Decides, for one request after the other, whether a failure is the end."""

    def __init__(self, label: str):
        self._is_answered = False
        self._label = label
        self._failures = 0

    def progress(self) -> None:
        """The last attempt brought something: begin to count anew."""
        self._is_answered = True
        self._failures = 0

    def wait(self, error: Exception) -> None:
        """Wait before the next attempt; raise `error` if there is none."""
        self._failures += 1
        self._is_answered |= not isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.ProxyError)
        limit = ATTEMPTS if self._is_answered else ATTEMPTS_UNANSWERED
        seconds = _retry_after(error)
        if seconds is None:
            seconds = _FIRST_WAIT_S * 2 ** (self._failures - 1)
        if not is_transient(error) or self._failures >= limit or seconds > LONGEST_WAIT_S:
            raise error
        log.warning("%s: %s; trying again in %g s", self._label, brief(error), seconds)
        sleep(seconds)


def patiently(label: str, request: Callable[[], _Result]) -> _Result:
    """What `request` returns, tried again while its failures can pass."""
    patience = Patience(label)
    while True:
        try:
            return request()
        except (httpx2.HTTPError, InterruptedTransferError) as error:
            patience.wait(error)


def is_transient(error: Exception) -> bool:
    """Whether the same request may succeed later."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in (408, 429) or error.response.status_code >= 500
    return isinstance(error, httpx2.TransportError | InterruptedTransferError)


def brief(error: Exception) -> str:
    """An error in a few words, without addresses: a signed one is a secret for as long as it holds."""
    if isinstance(error, HfHubHTTPError):
        return f"the hub answers {error.response.status_code} {error.response.reason_phrase}".rstrip()
    text = re.sub(r"\S+://\S+", "...", str(error).partition("\n")[0].rstrip("."))
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _retry_after(error: Exception) -> float | None:
    """Seconds of a Retry-After header, in either of its forms (RFC 9110, 10.2.3); None without one."""
    value = error.response.headers.get("Retry-After", "").strip() if isinstance(error, HfHubHTTPError) else ""
    if value.isdigit():
        return float(value)
    try:
        then = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (then.replace(tzinfo=then.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
