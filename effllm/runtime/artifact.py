"""Artifacts: directories of files whose `manifest.json` is the edge of the workflow's graph.

An artifact lives in `results/<stage>/<id>/`:

    manifest.json     what it is: stage, id, spec, status, digests of the payload and of the parents' manifests
    .published.json   the same: Snakemake deletes a rule's outputs before it reruns it, and this copy lets the stage
                      see that nothing has changed and put the manifest back
    provenance.json   how it came to be: versions, commit, host, device, job, command, start, end, digests of records
    records/          what was observed while it was built (loss curve, telemetry); not part of its identity
    ...               the payload

The manifest holds nothing that differs between two runs with the same result. A rule's output is the manifest, and
Snakemake compares small files by checksum: rebuilding to the same bytes reruns nothing, to other bytes reruns what
depends on them.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, get_args

from effllm.errors import CellFailure, Status, UserError

MANIFEST = "manifest.json"
PUBLISHED = ".published.json"
PROVENANCE = "provenance.json"
RECORDS = "records"
_CHUNK_BYTES = 1 << 22
_LONGEST_REASON = 120
_LONGEST_NAME = 255


@dataclass(frozen=True)
class FileDigest:
    """Size in bytes and sha256 (hex) of one file."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Parent:
    """The artifact that an input was: its identity and the sha256 of its manifest (of the file, for a plain file)."""

    stage: str
    id: str
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Identity and content of an artifact; equal manifests mean equal artifacts."""

    stage: str
    id: str
    spec: dict[str, Any]
    status: Status
    reason: str | None
    payload: dict[str, FileDigest]
    parents: dict[str, Parent]
    format: int = field(default=1)

    def to_json(self) -> str:
        """Canonical text: sorted keys, so that equal manifests are equal files."""
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"

    @classmethod
    def read(cls, path: Path) -> "Manifest":
        """Parse `path`; `UserError` if it is missing, unreadable or of another format."""
        try:
            raw = read_object(path)
            raw["payload"] = file_digests(raw["payload"])
            raw["parents"] = {name: Parent(**parent) for name, parent in raw["parents"].items()}
            manifest = cls(**raw)
            manifest._require_types()
        except FileNotFoundError:
            raise UserError(f"{path} does not exist: build it first, snakemake {path}.") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            why = str(error)[:_LONGEST_REASON]
            raise UserError(f"{path} is not a readable manifest ({why}): delete it and run again.") from None
        return manifest

    def _require_types(self) -> None:
        texts = [self.stage, self.id, *(text for parent in self.parents.values() for text in asdict(parent).values())]
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("a stage, an id or a digest is not a text")
        if not isinstance(self.spec, dict):
            raise TypeError("its spec is not an object")
        if self.status not in get_args(Status) or not isinstance(self.reason, str | None):
            raise TypeError("its status or its reason is none that a stage publishes")
        if type(self.format) is not int or self.format != 1:
            raise ValueError("its format is not 1")


@dataclass(frozen=True)
class Artifact:
    """A published artifact: its directory and its manifest."""

    directory: Path
    manifest: Manifest
    sha256: str

    @classmethod
    def open(cls, manifest_path: str | Path) -> "Artifact":
        """Open the artifact behind `manifest_path` without reading its payload."""
        path = Path(manifest_path)
        manifest = Manifest.read(path)
        return cls(path.parent, manifest, digest_file(path).sha256)

    def verify(self) -> None:
        """Raise `UserError` naming the first payload file that is missing or differs from its digest."""
        for name in sorted(self.manifest.payload):
            self.verify_file(name)

    def verify_file(self, name: str) -> None:
        """Raise `UserError` if one payload file is missing or differs from its digest."""
        failure = self._damage_of(name)
        if failure:
            raise UserError(f"{failure}; the artifact is damaged: delete {self.directory} and run again to rebuild it.")

    def verify_record(self, name: str) -> None:
        """Raise `UserError` if a record (`records/...`) is missing or differs from its digest in provenance.json."""
        recorded = self._records().get(name)
        failure: str | None = f"{self.directory / PROVENANCE} lists no {name}"
        if recorded is not None:
            failure = self._difference(name, recorded, "provenance")
        if failure:
            raise UserError(f"{failure}; the artifact is damaged: delete {self.directory} and run again to rebuild it.")

    def has_record(self, name: str) -> bool:
        """Whether provenance.json lists the record."""
        return name in self._records()

    def damaged_records(self) -> Iterator[str]:
        """Yield one sentence per record that is missing, truncated or altered."""
        for name, digest in sorted(self._records().items()):
            failure = self._difference(name, digest, "provenance")
            if failure:
                yield failure

    def _records(self) -> dict[str, FileDigest]:
        path = self.directory / PROVENANCE
        try:
            return file_digests(read_object(path).get("records", {}))
        except (OSError, ValueError, TypeError, AttributeError) as error:
            why = str(error)[:_LONGEST_REASON]
            raise UserError(f"{path} is not readable ({why}): delete {self.directory} and run again.") from None

    def misplaced(self) -> str | None:
        """A sentence if the manifest is of another artifact than its directory is named after."""
        here, own = self.directory.absolute().parts[-2:], (self.manifest.stage, self.manifest.id)
        if here == own:
            return None
        return f"{self.directory} holds the manifest of {'/'.join(own)[:_LONGEST_NAME]}"

    def require_own_manifest(self) -> None:
        """Raise `UserError` if the manifest was moved here from another artifact or edited."""
        failure = self.misplaced() or next(self.edited(), None)
        if failure:
            raise UserError(f"{failure}; the artifact is damaged: delete {self.directory} and run again to rebuild it.")

    def edited(self) -> Iterator[str]:
        """Yield one sentence per sign that the manifest is not the one that was published.

        The copy beside it must be equal, and provenance.json holds its sha256 (older artifacts have none there). The
        manifests of its children and the records of tables hold the same digest.
        """
        path, copy = self.directory / MANIFEST, self.directory / PUBLISHED
        try:
            if digest_file(copy).sha256 != self.sha256:
                yield f"{path} differs from the copy that was published with it, {copy.name}"
        except OSError as error:
            yield f"{copy} cannot be read ({error.strerror})"
        try:
            recorded = read_object(self.directory / PROVENANCE).get("manifest_sha256", self.sha256)
        except (OSError, ValueError, TypeError):
            return
        if recorded != self.sha256:
            yield f"{path} does not match the sha256 in its {PROVENANCE}"

    def damage(self) -> Iterator[str]:
        """Yield one sentence per payload file that is missing, truncated or altered."""
        for name in sorted(self.manifest.payload):
            failure = self._damage_of(name)
            if failure:
                yield failure

    def _damage_of(self, name: str) -> str | None:
        return self._difference(name, self.manifest.payload[name], "manifest")

    def _difference(self, name: str, digest: FileDigest, source: str) -> str | None:
        path = self.directory / name
        if not path.is_file():
            return f"{path} is listed in its {source} but does not exist"
        if path.stat().st_size != digest.size:
            return f"{path} has {path.stat().st_size} bytes where its {source} says {digest.size}"
        if digest_file(path).sha256 != digest.sha256:
            return f"{path} does not match the sha256 in its {source}"
        return None

    def require_ok(self) -> None:
        """Raise `CellFailure` with this artifact's own status and reason unless it is `ok`."""
        if self.manifest.status != "ok":
            reason = f"{self.manifest.stage}/{self.manifest.id}: {self.manifest.reason}"
            raise CellFailure(self.manifest.status, reason)

    def json(self, name: str) -> dict[str, Any]:
        """The parsed content of a JSON file of this artifact; `UserError` if it is missing or not JSON."""
        path = self.directory / name
        try:
            return read_object(path)
        except FileNotFoundError:
            raise UserError(f"{path} is missing: delete {self.directory} and run again.") from None
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{path} is not a JSON object ({error}): delete {self.directory} and run again.") from None

    def as_parent(self) -> Parent:
        """How a child refers to this artifact."""
        return Parent(self.manifest.stage, self.manifest.id, self.sha256)


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file that anyone may have damaged; OSError, ValueError or TypeError if it holds none."""
    try:
        raw = json.loads(path.read_text())
        # Escapes may hide half a surrogate pair, which could be neither printed nor written again.
        json.dumps(raw, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(raw, dict):
        raise TypeError("not a JSON object")
    return raw


def file_digests(raw: Any) -> dict[str, FileDigest]:
    """Digests by file name as JSON holds them; ValueError or TypeError if names leave the directory or types differ."""
    digests = {name: FileDigest(**digest) for name, digest in raw.items()}
    for name, digest in digests.items():
        path = PurePosixPath(name)
        is_too_long = any(len(part.encode()) > _LONGEST_NAME for part in path.parts) or len(name) > 4 * _LONGEST_NAME
        if not path.parts or path.is_absolute() or ".." in path.parts or "\0" in name or is_too_long:
            raise ValueError(f"not the name of a file in its directory: {name[:_LONGEST_REASON]!r}")
        if type(digest.size) is not int or not 0 <= digest.size < 1 << 63 or not isinstance(digest.sha256, str):
            raise TypeError(f"not a size and a sha256: the digest of {name[:_LONGEST_REASON]!r}")
    return digests


def digest_file(path: Path) -> FileDigest:
    """Size and sha256 of one file, read in chunks."""
    digest = hashlib.sha256()
    size = 0
    with open(path, "rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    return FileDigest(size, digest.hexdigest())


def digest_tree(root: Path) -> dict[str, FileDigest]:
    """Digests of every file below `root`, keyed by its POSIX path relative to `root`."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    with ThreadPoolExecutor(max_workers=4) as pool:
        digests = list(pool.map(digest_file, files))
    return {path.relative_to(root).as_posix(): digest for path, digest in zip(files, digests, strict=True)}


def write_text(path: Path, text: str) -> None:
    """Write `path` whole or not at all: beside, fsync, rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "w") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
