"""Repositories of the hub at a pinned commit: their files, listed and fetched."""

import logging
import shutil
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from urllib.parse import quote

from huggingface_hub import constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status, validate_repo_id

from effllm.errors import UserError
from effllm.hub import cache
from effllm.hub.digests import Digest
from effllm.hub.explain import HUB_ERRORS, explain
from effllm.hub.patience import InterruptedTransferError, patiently
from effllm.hub.transfer import Stopped, transfer
from effllm.runtime.progress import Progress

log = logging.getLogger(__name__)
# At INFO the HTTP client logs every address, signed ones included.
logging.getLogger("httpx2").setLevel(logging.WARNING)
PARALLEL_TRANSFERS = 4
LARGEST_FILE_BYTES = constants.MAX_HTTP_DOWNLOAD_SIZE
"""The hub gives larger files out by its Xet protocol alone."""


@dataclass(frozen=True)
class HubFile:
    """A file of a repository, as the hub's tree lists it."""

    path: str
    size: int
    digest: Digest


class Repository:
    """A model or dataset repository at one commit.

    With HF_HUB_OFFLINE it is what the hub's cache holds of that commit. Files that the cache has are taken from there
    in any case, after a look at their digests.
    """

    def __init__(self, kind: Literal["model", "dataset"], repo: str, revision: str):
        self.label = f"{repo} at {revision[:8]}"
        self.kind = kind
        self.repo = repo
        self.revision = revision

    def files(self, patterns: Sequence[str] | None = None) -> list[HubFile]:
        """The files sorted by path: all, or those of the top folder that match a pattern.

        `UserError` if the hub does not list them.
        """
        try:
            validate_repo_id(self.repo)
            files = self._cached_files(patterns) if constants.is_offline_mode() else self._listed_files()
        except HUB_ERRORS as error:
            raise self.explained(error) from None
        for file in files:
            path = PurePosixPath(file.path)
            if path.is_absolute() or ".." in path.parts or "\\" in file.path or "\0" in file.path:
                raise UserError(f"{self.label}: the file name {file.path!r} leads out of the repository; take another.")
        chosen = [file for file in files if patterns is None or _matches(file.path, patterns)]
        return sorted(chosen, key=lambda file: file.path)

    def fetch(self, files: Sequence[HubFile], directory: Path) -> None:
        """Put `files` at their paths below `directory`, each checked against its digest.

        What is there already and whole stays, and what a killed run left of a file is taken up. `UserError` for what
        cannot be fetched, for a full disk before the first byte, and for content that twice was not the hub's.
        """
        with Progress(sum(file.size for file in files), unit="bytes", label=f"fetching {self.label}") as bar:
            fetch_all([Download(self, file, directory / file.path) for file in files], directory, bar)

    def into_cache(self, files: Sequence[HubFile]) -> list["Download"]:
        """The downloads that bring `files` into the hub's cache; `link` says when they are there."""
        downloads = {cache.blob(self.kind, self.repo, file.digest): file for file in files}
        return [Download(self, file, target) for target, file in downloads.items()]

    def fetch_into_cache(self, file: HubFile) -> Path:
        """Where the hub's cache has `file`, fetched if it was not there; errors as those of `fetch`."""
        with Progress(file.size, unit="bytes", label=f"fetching {self.label}") as bar:
            fetch_all(self.into_cache([file]), Path(constants.HF_HUB_CACHE), bar)
        cache.link(self.kind, self.repo, self.revision, file.path, file.digest)
        found = self.cached(file)
        assert found is not None
        return found

    def link(self, files: Sequence[HubFile]) -> None:
        """Make `files` of the cache this commit's, and keep the list of all its files, for runs without a network."""
        for file in files:
            cache.link(self.kind, self.repo, self.revision, file.path, file.digest)
        listing = [{"path": file.path, "size": file.size, **asdict(file.digest)} for file in self.files()]
        cache.write_listing(self.kind, self.repo, self.revision, listing)

    def require_access(self, file: HubFile) -> None:
        """Raise `UserError` if the hub does not give `file` out to this account, without fetching it."""
        if constants.is_offline_mode() or self.cached(file) is not None:
            return
        try:
            patiently(f"asking for {file.path} of {self.label}", lambda: _head(self.url(file)))
        except HUB_ERRORS as error:
            raise self.explained(error, file) from None

    def explained(self, error: Exception, file: HubFile | None = None) -> UserError:
        """An error of `HUB_ERRORS` in a sentence."""
        return UserError(explain(error, self.kind, self.repo, self.revision, file.path if file else None))

    def url(self, file: HubFile) -> str:
        """Where the hub gives `file` out."""
        prefix = "datasets/" if self.kind == "dataset" else ""
        return f"{constants.ENDPOINT}/{prefix}{self.repo}/resolve/{self.revision}/{quote(file.path)}"

    def cached(self, file: HubFile) -> Path | None:
        """The file in the hub's cache, if it is there."""
        found = try_to_load_from_cache(self.repo, file.path, revision=self.revision, repo_type=self.kind)
        return Path(found) if isinstance(found, str) else None

    def _listed_files(self) -> list[HubFile]:
        revision = quote(self.revision, safe="")
        url: str | None = f"{constants.ENDPOINT}/api/{self.kind}s/{self.repo}/tree/{revision}?recursive=true"
        files = []
        while url is not None:
            entries, url = patiently(f"listing {self.label}", partial(_page, url))
            files += [_hub_file(entry) for entry in entries if entry["type"] == "file"]
        return files

    def _cached_files(self, patterns: Sequence[str] | None) -> list[HubFile]:
        listing = cache.read_listing(self.kind, self.repo, self.revision)
        if listing is not None:
            return [HubFile(e["path"], e["size"], Digest(e["kind"], e["value"])) for e in listing]
        try:
            found = snapshot_download(
                self.repo,
                revision=self.revision,
                repo_type=self.kind,
                local_files_only=True,
                allow_patterns=None if patterns is None else list(patterns),
            )
        except LocalEntryNotFoundError:
            raise OfflineModeIsEnabled from None
        folder = Path(found)
        paths = [path for path in folder.rglob("*") if path.is_file()]
        digests = {path: Digest.of_name(path.resolve().name) for path in paths}
        return [
            HubFile(path.relative_to(folder).as_posix(), path.stat().st_size, digest)
            for path, digest in digests.items()
            if digest is not None
        ]


@dataclass(frozen=True)
class Download:
    """A file of a repository and where it is to lie."""

    repository: Repository
    file: HubFile
    target: Path

    def is_there(self) -> bool:
        """Whether the file lies there whole."""
        path = self.target
        return path.is_file() and path.stat().st_size == self.file.size and self.file.digest.fits(path)


def fetch_all(
    downloads: Sequence[Download], directory: Path, bar: Progress, parallel: int = PARALLEL_TRANSFERS
) -> None:
    """Run `downloads`, all on the file system of `directory`, `parallel` at a time; errors are those of `fetch`."""
    wanted = []
    for download in downloads:
        download.target.parent.mkdir(parents=True, exist_ok=True)
        if download.is_there():
            bar.update(download.file.size)
        else:
            wanted.append(download)
    _require_room(wanted, directory)
    fetching = _Fetching(bar)
    with ThreadPoolExecutor(parallel) as pool:
        pending = [(download, pool.submit(fetching.fetch, download)) for download in wanted]
        try:
            failed = [(error, download) for download, future in pending if (error := future.exception()) is not None]
        except BaseException:
            # An interrupt: the pool would wait for transfers of hours.
            fetching.stop()
            raise
    # The first that failed on its own account has stopped the others.
    for error, download in sorted(failed, key=lambda failure: isinstance(failure[0], Stopped)):
        if isinstance(error, HUB_ERRORS):
            raise download.repository.explained(error, download.file) from None
        raise error


class _Fetching:
    """Fetches files beside each other, until one fails."""

    def __init__(self, bar: Progress):
        self._bar = bar
        self._stop = threading.Event()

    def fetch(self, download: Download) -> None:
        """Fetch one file; raises `Stopped` if another one has failed."""
        try:
            self._fetch(download.repository, download.file, download.target)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Let all transfers end at their next piece."""
        self._stop.set()

    def _fetch(self, repository: Repository, file: HubFile, target: Path) -> None:
        if self._stop.is_set():
            raise Stopped
        label = f"{file.path} of {repository.label}"
        cached = repository.cached(file)
        if cached is not None and cached.stat().st_size == file.size and file.digest.fits(cached):
            shutil.copyfile(cached, target)
            self._bar.update(file.size)
            return
        if constants.is_offline_mode():
            if cached is None:
                raise UserError(
                    f"{label} is not in the hub's cache ({constants.HF_HUB_CACHE}) and HF_HUB_OFFLINE is set: unset "
                    "it, or run `effllm fetch` where the network is."
                )
            raise UserError(
                f"{repository.label}: {file.path} in the hub's cache ({constants.HF_HUB_CACHE}) is damaged, its "
                "digest is not the one in its name; delete it and fetch it again without HF_HUB_OFFLINE."
            )
        # What is taken up may be of a damaged disk or an interrupted write, so the whole file gets a second try.
        for is_last in (False, True):
            transfer(repository.url(file), target, file.size, label, self._stop, self._bar.update)
            if file.digest.fits(target):
                return
            target.unlink()
            self._bar.update(-file.size)
            if is_last:
                raise UserError(
                    f"{label} arrived with another {file.digest.kind} digest than the hub lists ({file.digest.value}), "
                    "twice: something on the way alters it; fetch it over another network."
                )
            log.warning("%s does not have the digest that the hub lists: fetching it anew", label)


def _require_room(downloads: Sequence[Download], directory: Path) -> None:
    for download in downloads:
        file, repository = download.file, download.repository
        if file.size > LARGEST_FILE_BYTES and repository.cached(file) is None:
            raise UserError(
                f"{repository.label}: {file.path} has {file.size / 1e9:,.0f} GB and the hub gives out at most "
                f"{LARGEST_FILE_BYTES / 1e9:,.0f} GB over HTTP; fetch it with `hf download {repository.repo} "
                f"--revision {repository.revision}`, then run again."
            )
    needed, free = sum(download.file.size for download in downloads), shutil.disk_usage(directory).free
    if needed > free:
        labels = ", ".join(dict.fromkeys(download.repository.label for download in downloads))
        raise UserError(
            f"{labels} has {needed / 1e9:,.1f} GB to fetch and the file system of {directory} has "
            f"{free / 1e9:,.1f} GB free: free some space and run again."
        )


def _matches(path: str, patterns: Sequence[str]) -> bool:
    return "/" not in path and any(fnmatch(path, pattern) for pattern in patterns)


def _head(url: str) -> None:
    """Raise what the hub answers in place of the file; where the file lies is not asked."""
    response = get_session().head(
        url, headers=build_hf_headers(), timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT, follow_redirects=False
    )
    hf_raise_for_status(response)


def _page(url: str) -> tuple[list[dict[str, Any]], str | None]:
    response = get_session().get(url, headers=build_hf_headers(), timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT)
    hf_raise_for_status(response)
    try:
        entries = response.json()
    except ValueError:
        entries = None
    if not isinstance(entries, list):
        raise InterruptedTransferError("the list of files is not one")
    return entries, response.links.get("next", {}).get("url")


def _hub_file(entry: dict[str, Any]) -> HubFile:
    lfs = entry.get("lfs")
    digest = Digest("sha256", lfs["oid"]) if lfs else Digest("git", entry["oid"])
    return HubFile(entry["path"], entry["size"], digest)
