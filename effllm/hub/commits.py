"""The commit that a repository of the hub is at: what a study pins."""

import re
from functools import partial
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.errors import OfflineModeIsEnabled
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status, validate_repo_id

from effllm.errors import UserError
from effllm.hub.explain import HUB_ERRORS, explain
from effllm.hub.patience import InterruptedTransferError, patiently

_BRANCH = "main"
_COMMIT = re.compile(r"[0-9a-f]{40}")


def commit_of(kind: Literal["model", "dataset"], repo: str) -> str:
    """The commit of the repository's main branch, asked of the hub; with HF_HUB_OFFLINE that of its cache.

    `UserError` where it cannot be told.
    """
    try:
        validate_repo_id(repo)
        if constants.is_offline_mode():
            return _cached_commit(kind, repo)
        url = f"{constants.ENDPOINT}/api/{kind}s/{repo}/revision/{_BRANCH}"
        answer = patiently(f"asking for the commit of {repo}", partial(_object, url))
    except HUB_ERRORS as error:
        raise UserError(explain(error, kind, repo, _BRANCH)) from None
    commit = str(answer.get("sha"))
    if not _COMMIT.fullmatch(commit):
        raise UserError(f"the hub names no commit of the {kind} {repo} ({commit[:60]!r}): take it from its page.")
    return commit


def _cached_commit(kind: str, repo: str) -> str:
    found = try_to_load_from_cache(repo, "config.json", revision=_BRANCH, repo_type=kind)
    if not isinstance(found, str):
        raise OfflineModeIsEnabled
    return Path(found).parent.name


def _object(url: str) -> dict[str, Any]:
    response = get_session().get(url, headers=build_hf_headers(), timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT)
    hf_raise_for_status(response)
    try:
        content = response.json()
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise InterruptedTransferError("what it says of the repository is no object")
    return content
