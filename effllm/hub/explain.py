"""What went wrong at the hub, in one sentence with what the user can do about it."""

import os
import socket
import ssl
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx2
from huggingface_hub import constants, get_token
from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from effllm.hub.patience import InterruptedTransferError, brief

HUB_ERRORS = (httpx2.HTTPError, InterruptedTransferError, OfflineModeIsEnabled, HFValidationError)
"""What requests to the hub raise, and `explain` puts into words."""
# The host was there: it is the connection that does not last.
_BROKEN_OFF = (httpx2.ReadError, httpx2.ReadTimeout, httpx2.RemoteProtocolError)


def explain(error: Exception, kind: str, repo: str, revision: str, file: str | None = None) -> str:
    """One sentence for an error of `HUB_ERRORS`; `kind` is "model" or "dataset", `file` what was asked for of it."""
    page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{repo}"
    what = f"{file} of the {kind} {repo}" if file else f"the {kind} {repo}"
    if isinstance(error, OfflineModeIsEnabled):
        return (
            f"{what} at {revision[:8]} is not in the hub's cache ({constants.HF_HUB_CACHE}) and HF_HUB_OFFLINE is set: "
            "unset it, or fetch the repository with `hf download` where the network is."
        )
    if isinstance(error, HFValidationError):
        return f"{repo!r} cannot name a repository of the hub ({_first_line(error)}): write owner/name."
    if isinstance(error, HfHubHTTPError):
        return _explain_answer(error, what, page, revision)
    if isinstance(error, (InterruptedTransferError, *_BROKEN_OFF)):
        how = _first_line(error) if isinstance(error, InterruptedTransferError) else f"it breaks off ({brief(error)})"
        return (
            f"{what} cannot be fetched: {how}, time after time; what came is kept, so run again when the connection "
            "is better."
        )
    host = urlsplit(constants.ENDPOINT).hostname
    chain = list(causes(error))
    if any(isinstance(cause, ssl.SSLError) for cause in chain):
        return (
            f"{what} cannot be fetched: {host} cannot prove who it is ({brief(error)}); if a proxy of this network "
            "signs for it, name its certificate in SSL_CERT_FILE."
        )
    proxy = next((os.environ[name] for name in ("HTTPS_PROXY", "https_proxy") if os.environ.get(name)), None)
    if isinstance(error, httpx2.ProxyError) and proxy:
        return f"{what} cannot be fetched: the proxy in HTTPS_PROXY refuses ({brief(error)}); correct or unset it."
    if any(isinstance(cause, socket.gaierror) for cause in chain) or "Name or service" in str(error):
        return (
            f"{what} cannot be fetched: the name {host} cannot be resolved, so this host has no network or no DNS; "
            "run this stage where the network is, or take a local source."
        )
    return (
        f"{what} cannot be fetched: {host} does not answer ({brief(error)}); check the network of this host, or take "
        "a local source; what came so far is kept."
    )


def _explain_answer(error: HfHubHTTPError, what: str, page: str, revision: str) -> str:
    status = error.response.status_code
    message = error.response.headers.get("X-Error-Message", "")
    token = "HF_TOKEN" if os.environ.get("HF_TOKEN") else "the stored token"
    if isinstance(error, GatedRepoError):
        if get_token() is None:
            return (
                f"{what} is gated: accept its licence at {page} with your account, and set HF_TOKEN to a token of it "
                "(https://huggingface.co/settings/tokens)."
            )
        return (
            f"{what} is gated and the account of {token} has no access: accept its licence at {page} with that "
            "account and wait until it is granted, or set HF_TOKEN to a token of one that has it."
        )
    if isinstance(error, DisabledRepoError):
        return f"{what} was disabled by the hub: choose another."
    if isinstance(error, RevisionNotFoundError):
        return f"{what} has no revision {revision}: take a commit that {page}/commits/main lists."
    if isinstance(error, EntryNotFoundError):
        return f"{what} at {revision[:8]} is listed and not there: take another revision ({page}/commits/main)."
    if "Invalid credentials" in message or (status == 401 and get_token() is not None):
        return (
            f"{what} cannot be fetched: the hub does not accept {token} (401), or hides the repository from it; make "
            "a new token at https://huggingface.co/settings/tokens, unset HF_TOKEN for public repositories, and "
            "compare the name with its page."
        )
    if isinstance(error, RepositoryNotFoundError) or status in (401, 404):
        return (
            f"{what} does not exist on the hub, or is hidden from this account: correct the name; for a private or "
            "gated repository set HF_TOKEN to a token of an account that may read it."
        )
    if status == 403:
        return (
            f"{what} cannot be fetched: the hub forbids it ({message or 403}); accept its licence at {page} if it has "
            "one, and give the token in HF_TOKEN read access to gated repositories."
        )
    if status == 429:
        wait = error.response.headers.get("Retry-After")
        when = f"; the hub asks to wait {wait} s" if wait else ""
        return (
            f"{what} cannot be fetched: the hub limits this host's requests (429){when}: run again later, or set "
            "HF_TOKEN, whose limits are higher."
        )
    if status >= 500:
        return (
            f"{what} cannot be fetched: {brief(error)}, time after time; see https://status.huggingface.co and run "
            "again later, what came so far is kept."
        )
    return (
        f"{what} at {revision[:8]} cannot be fetched: {brief(error)}; correct source.repo or source.revision ({page})."
    )


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".")
