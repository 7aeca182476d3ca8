"""One file over HTTP, taken up again where it was broken off."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import httpx2
from huggingface_hub import constants
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from effllm.hub.patience import InterruptedTransferError, Patience

LEAST_BYTES = 64 << 10
"""What an attempt must bring within `STALL_S` to count as one that brought something."""
STALL_S = 60.0


class Stopped(Exception):
    """Another transfer of the same set has failed."""


def transfer(
    url: str, target: Path, size: int, label: str, stop: threading.Event, progress: Callable[[int], None]
) -> None:
    """Write the `size` bytes behind `url` to `target`; what an earlier process left in its partial file is kept.

    The partial file is hidden, so that it is not taken for one of the repository's. Every attempt asks the hub itself
    again, so that a signed address that has expired is replaced by a new one. Raises the last error of `httpx2` or
    `huggingface_hub` when patience ends, and `Stopped` when `stop` is set.
    """
    partial = target.with_name(f".{target.name}.partial")
    patience = Patience(label)
    with partial.open("ab") as file:
        progress(file.tell())
        while file.tell() != size:
            before = file.tell()
            try:
                _continue(url, file, size, stop, progress)
            except (httpx2.HTTPError, InterruptedTransferError) as error:
                if file.tell() - before >= LEAST_BYTES:
                    patience.progress()
                patience.wait(error)
        file.flush()
        # The name says that the content is whole, so the content comes first, whatever the machine does next.
        os.fsync(file.fileno())
    partial.replace(target)


def _continue(url: str, file: BinaryIO, size: int, stop: threading.Event, progress: Callable[[int], None]) -> None:
    start = file.tell()
    # Compressed on the way it would have neither the length nor the ranges of the file.
    headers = build_hf_headers() | {"Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    with get_session().stream("GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as response:
        if response.status_code >= 400:
            response.read()
            if _is_elsewhere(response) and response.status_code in (400, 401, 403, 404):
                raise InterruptedTransferError(f"the signed address was refused ({response.status_code})")
            if response.status_code == 416:
                _empty(file, progress)
                raise InterruptedTransferError("the hub refused the range")
            hf_raise_for_status(response)
        if start and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            if response.status_code != 200:
                raise InterruptedTransferError("another range came than was asked for")
            # The server does not know ranges.
            _empty(file, progress)
        _receive(response, file, size, stop, progress)
    if file.tell() < size:
        raise InterruptedTransferError(f"the transfer ended after {file.tell():,} of {size:,} bytes")


def _is_elsewhere(response: httpx2.Response) -> bool:
    """Whether it was a redirect out of the hub that was refused; the hub names its own refusals."""
    hub = httpx2.URL(constants.ENDPOINT)
    return (response.url.host, response.url.port) != (hub.host, hub.port) and "X-Error-Code" not in response.headers


def _receive(
    response: httpx2.Response, file: BinaryIO, size: int, stop: threading.Event, progress: Callable[[int], None]
) -> None:
    since, received = time.monotonic(), 0
    for chunk in response.iter_raw():
        if stop.is_set():
            raise Stopped
        if file.tell() + len(chunk) > size:
            _empty(file, progress)
            raise InterruptedTransferError(f"more came than the {size:,} bytes that the hub lists")
        file.write(chunk)
        progress(len(chunk))
        received += len(chunk)
        if received >= LEAST_BYTES:
            since, received = time.monotonic(), 0
        elif file.tell() < size and time.monotonic() - since > STALL_S:
            raise InterruptedTransferError(f"{received:,} bytes came in {STALL_S:g} s")


def _empty(file: BinaryIO, progress: Callable[[int], None]) -> None:
    progress(-file.tell())
    file.seek(0)
    file.truncate()
