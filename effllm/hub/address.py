"""A file at any address, pinned by its digest: what lies neither on the hub nor on this machine."""

import hashlib
from pathlib import Path

import httpx2
from huggingface_hub import constants
from huggingface_hub.errors import OfflineModeIsEnabled
from huggingface_hub.utils import get_session

from effllm.errors import UserError
from effllm.hub.patience import InterruptedTransferError, brief, patiently

_MOST_BYTES = 1 << 28


def fetch_address(where: str, url: str, sha256: str, target: Path) -> None:
    """Write what `url` gives out to `target`; `UserError`, beginning with `where`, unless its SHA-256 is `sha256`."""
    instead = "download it where the network is, and name the file instead"
    try:
        content = patiently(f"fetching {url}", lambda: _get(url))
    except OfflineModeIsEnabled:
        raise UserError(f"{where}: {url} is to be fetched and HF_HUB_OFFLINE is set; {instead}.") from None
    except httpx2.HTTPStatusError as error:
        raise UserError(f"{where}: {url} answers {error.response.status_code}; correct the address.") from None
    except (httpx2.HTTPError, httpx2.InvalidURL, InterruptedTransferError) as error:
        raise UserError(f"{where}: {url} cannot be fetched ({brief(error)}); {instead}.") from None
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise UserError(
            f"{where}: what {url} gives out has the SHA-256 {found} and not {sha256}; name the commit that was meant."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)


def _get(url: str) -> bytes:
    # Without the hub's headers: its token is nobody else's business.
    with get_session().stream("GET", url, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT, follow_redirects=True) as response:
        if response.status_code == 429 or response.status_code >= 500:
            raise InterruptedTransferError(f"it answers {response.status_code}")
        response.raise_for_status()
        parts, size = [], 0
        for part in response.iter_bytes():
            parts.append(part)
            size += len(part)
            if size > _MOST_BYTES:
                raise httpx2.RemoteProtocolError(f"it is larger than {_MOST_BYTES:,} bytes")
    return b"".join(parts)
