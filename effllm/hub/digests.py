"""Digests of the hub's tree: sha256 of files that git-lfs or Xet hold, git's own of all others."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Digest:
    """A file's digest in hexadecimal; `kind` is "sha256", or "git" for the sha1 of git's blob."""

    kind: str
    value: str

    @classmethod
    def of_name(cls, name: str) -> "Digest | None":
        """The digest that a blob of the hub's cache is named by; None if it is not named so."""
        kind = {64: "sha256", 40: "git"}.get(len(name))
        return cls(kind, name) if kind and re.fullmatch("[0-9a-f]+", name) else None

    def of_file(self, path: Path) -> "Digest":
        """The digest of the same kind of `path`."""
        digest = hashlib.sha256()
        if self.kind == "git":
            # https://git-scm.com/book/en/v2/Git-Internals-Git-Objects
            digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
        return Digest(self.kind, digest.hexdigest())

    def fits(self, path: Path) -> bool:
        """Whether `path` has this digest."""
        return self.of_file(path) == self
