"""How a finished directory becomes an artifact: its manifest and copy, the modes that the umask says, one rename."""

import errno
import hashlib
import os
import shutil
import stat
from pathlib import Path
from typing import Any

from effllm.errors import CellFailure, UserError
from effllm.results.provenance import Provenance, RecordDigest
from effllm.runtime.artifact import (
    MANIFEST,
    PROVENANCE,
    PUBLISHED,
    RECORDS,
    Artifact,
    Manifest,
    Parent,
    digest_tree,
    write_text,
)


def publish(
    staging: Path,
    destination: Path,
    *,
    stage: str,
    id: str,
    spec: dict[str, Any],
    parents: dict[str, Parent],
    provenance: Provenance,
    failure: CellFailure | None = None,
) -> Artifact:
    """Make `staging` the artifact at `destination`, whole or not at all.

    `staging` must lie on the same file system. With `failure`, the payload is dropped and the status published. Modes
    follow the umask.
    A reader sees the old artifact, none, or the new one: the manifest is the last file written, and the directory
    is moved into place by a rename.
    """
    if failure:
        for path in staging.iterdir():
            if path.name != RECORDS:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    share(staging)
    digests = digest_tree(staging)
    records = {
        name: RecordDigest(size=digest.size, sha256=digest.sha256)
        for name, digest in digests.items()
        if name.startswith(f"{RECORDS}/")
    }
    manifest = Manifest(
        stage=stage,
        id=id,
        spec=spec,
        status=failure.status if failure else "ok",
        reason=failure.reason if failure else None,
        payload={name: digest for name, digest in digests.items() if name not in records},
        parents=parents,
    )
    history = provenance.model_copy(update={"records": records, "manifest_sha256": _sha256(manifest.to_json())})
    write_text(staging / PROVENANCE, history.to_json())
    write_text(staging / PUBLISHED, manifest.to_json())
    write_text(staging / MANIFEST, manifest.to_json())
    _replace_directory(staging, destination)
    return Artifact.open(destination / MANIFEST)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def restore(destination: Path, spec: dict[str, Any], parents: dict[str, Parent]) -> Artifact | None:
    """The artifact at `destination`, its manifest put back if need be, if it is whole and of this spec and parents.

    This is what stops a rerun from spreading: an input that was rebuilt to the same bytes has the same digest, so
    what was built from it is up to date.
    """
    copy = destination / PUBLISHED
    if not copy.is_file():
        return None
    try:
        present = Artifact.open(copy)
    except UserError:
        # A damaged copy restores nothing: the artifact is built again.
        return None
    if (present.manifest.stage, present.manifest.id) != (destination.parent.name, destination.name):
        return None
    if present.manifest.spec != spec or present.manifest.parents != parents or any(present.damage()):
        return None
    if not (destination / MANIFEST).exists():
        write_text(destination / MANIFEST, present.manifest.to_json())
    return Artifact.open(destination / MANIFEST)


def share(root: Path) -> None:
    """Give every file and directory below `root` the mode that a new one has there: the umask's, or a default ACL's.

    Libraries write through temporary files that are their owner's alone (safetensors, tempfile), and copies keep the
    modes of their sources.
    """
    probe = root / f".mode.{os.getpid()}"
    probe.mkdir()
    try:
        (probe / "file").touch()
        directory_mode, file_mode = (stat.S_IMODE(path.stat().st_mode) for path in (probe, probe / "file"))
    finally:
        shutil.rmtree(probe)
    for path in root.rglob("*"):
        mode = directory_mode if path.is_dir() else file_mode
        # What another user wrote has the right mode already, and only its owner may set it.
        if not path.is_symlink() and stat.S_IMODE(path.stat().st_mode) != mode:
            path.chmod(mode)


def _replace_directory(source: Path, destination: Path) -> None:
    # Beside the destination: the folder of a stage may be a file system of its own, as the scratch may.
    beside = destination.with_name(f".{destination.name}.arriving")
    if beside.exists():
        shutil.rmtree(beside)
    beside.mkdir(parents=True)
    arrived, replaced = beside / "new", beside / "old"
    try:
        _move(source, arrived)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    if destination.exists():
        # A directory without its manifest is no artifact, so a kill between the renames leaves nothing half valid.
        for name in (MANIFEST, PUBLISHED):
            (destination / name).unlink(missing_ok=True)
        destination.rename(replaced)
    arrived.rename(destination)
    _sync(destination.parent)
    shutil.rmtree(beside)


def _move(source: Path, target: Path) -> None:
    """Rename a directory, or copy it and delete it where no rename reaches: on another file system, or mount of one."""
    try:
        source.rename(target)
        return
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
    shutil.copytree(source, target)
    for path in (target, *target.rglob("*")):
        _sync(path)
    shutil.rmtree(source)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
