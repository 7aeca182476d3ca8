"""The hub's cache on this machine, in the layout of `huggingface_hub`, and lists of files that it does not keep.

`blobs/<digest>` is the content, `snapshots/<commit>/<path>` a link to it. `listings/<commit>.json` is the hub's own
list of all files of a commit: by it a run without a network knows which files it lacks.
"""

import json
import os
from pathlib import Path
from typing import Any

from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name

from effllm.hub.digests import Digest
from effllm.runtime.artifact import write_text


def blob(kind: str, repo: str, digest: Digest) -> Path:
    """Where the content of a file lies."""
    return _folder(kind, repo) / "blobs" / digest.value


def link(kind: str, repo: str, revision: str, path: str, digest: Digest) -> None:
    """Give the content the name that it has at a commit."""
    name = _folder(kind, repo) / "snapshots" / revision / path
    name.parent.mkdir(parents=True, exist_ok=True)
    name.unlink(missing_ok=True)
    name.symlink_to(os.path.relpath(blob(kind, repo, digest), name.parent))


def write_listing(kind: str, repo: str, revision: str, entries: list[dict[str, Any]]) -> None:
    """Keep the list of a commit's files."""
    path = _listing(kind, repo, revision)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(entries, indent=1))


def read_listing(kind: str, repo: str, revision: str) -> list[dict[str, Any]] | None:
    """The list of a commit's files, None where none was kept."""
    try:
        entries: list[dict[str, Any]] = json.loads(_listing(kind, repo, revision).read_text())
    except (FileNotFoundError, ValueError):
        return None
    return entries


def _folder(kind: str, repo: str) -> Path:
    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type=kind)


def _listing(kind: str, repo: str, revision: str) -> Path:
    return _folder(kind, repo) / "listings" / f"{revision}.json"
