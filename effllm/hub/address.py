"""A file at any address, pinned by its digest: what lies neither on the hub nor on this machine."""

import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import httpx2
from huggingface_hub import constants
from huggingface_hub.errors import OfflineModeIsEnabled
from huggingface_hub.utils import get_session

from effllm.errors import UserError
from effllm.hub.digests import Digest
from effllm.hub.patience import InterruptedTransferError, brief, patiently

_MOST_BYTES = 1 << 28
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Address:
    """A file that `url` gives out, whose SHA-256 is `sha256`; errors are `UserError` and begin with `where`.

    It is kept in the hub's cache under its digest.
    """

    where: str
    url: str
    sha256: str

    def cached(self) -> Path | None:
        """The file in the cache, if it is there and whole."""
        path = self._path()
        return path if path.is_file() and Digest("sha256", self.sha256).fits(path) else None

    def size_b(self) -> int | None:
        """Its bytes, of which none are fetched; None where the server does not say."""
        cached = self.cached()
        if cached is not None:
            return cached.stat().st_size
        return self._asked(_head, self.url)

    def into_cache(self) -> Path:
        """Where the cache has it, fetched if it was not there."""
        cached = self.cached()
        if cached is not None:
            return cached
        content = self._asked(_get, self.url)
        found = hashlib.sha256(content).hexdigest()
        if found != self.sha256:
            raise UserError(
                f"{self.where}: what {self.url} gives out has the SHA-256 {found} and not {self.sha256}; name the "
                "commit that was meant."
            )
        path = self._path()
        path.parent.mkdir(parents=True, exist_ok=True)
        # Whole or not there, whoever else fetches it at the time.
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        partial.write_bytes(content)
        partial.replace(path)
        return path

    def fetch(self, target: Path) -> None:
        """Write it to `target`."""
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.into_cache(), target)

    def _path(self) -> Path:
        return Path(constants.HF_HUB_CACHE) / "addresses" / self.sha256

    def _asked(self, ask: Callable[[str], _Result], url: str) -> _Result:
        instead = "download it where the network is, and name the file instead"
        try:
            return patiently(f"fetching {url}", lambda: ask(url))
        except OfflineModeIsEnabled:
            raise UserError(
                f"{self.where}: {url} is not in the hub's cache ({constants.HF_HUB_CACHE}) and HF_HUB_OFFLINE is set: "
                "unset it, or run `effllm fetch` where the network is."
            ) from None
        except httpx2.HTTPStatusError as error:
            answer = error.response.status_code
            raise UserError(f"{self.where}: {url} answers {answer}; correct the address.") from None
        except (httpx2.HTTPError, httpx2.InvalidURL, InterruptedTransferError) as error:
            raise UserError(f"{self.where}: {url} cannot be fetched ({brief(error)}); {instead}.") from None


def _refused(response: httpx2.Response) -> None:
    if response.status_code == 429 or response.status_code >= 500:
        raise InterruptedTransferError(f"it answers {response.status_code}")
    response.raise_for_status()


def _head(url: str) -> int | None:
    # Compressed it would have another length.
    headers = {"Accept-Encoding": "identity"}
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    response = get_session().head(url, headers=headers, timeout=timeout, follow_redirects=True)
    if response.status_code in (405, 501):
        return None
    _refused(response)
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdecimal() else None


def _get(url: str) -> bytes:
    # Without the hub's headers: its token is nobody else's business.
    with get_session().stream("GET", url, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT, follow_redirects=True) as response:
        _refused(response)
        parts, size = [], 0
        for part in response.iter_bytes():
            parts.append(part)
            size += len(part)
            if size > _MOST_BYTES:
                raise httpx2.RemoteProtocolError(f"it is larger than {_MOST_BYTES:,} bytes")
    return b"".join(parts)
