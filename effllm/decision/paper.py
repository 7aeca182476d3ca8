"""The published values and claims that come with the project: which files there are, and what decides their content."""

from functools import cache
from pathlib import Path

from effllm.errors import UserError
from effllm.runtime.artifact import digest_file

PAPER = Path(__file__).resolve().parents[2] / "config" / "paper"
CLAIMS = "claims.yaml"


def published_tables() -> list[str]:
    """Names of the published tables, sorted."""
    return sorted(path.stem for path in PAPER.glob("table*.csv"))


@cache
def published_digest(name: str) -> str:
    """The sha256 of a file of config/paper as it was at first sight.

    Raises:
        UserError: there is no such file.
    """
    if not (PAPER / name).is_file():
        raise UserError(f"{PAPER / name} does not exist; restore it from the repository.")
    return digest_file(PAPER / name).sha256


def published_file(name: str, sha256: str) -> Path:
    """The path of a file of config/paper, if its content is still what a spec names.

    Raises:
        UserError: it is another by now.
    """
    if not (PAPER / name).is_file() or digest_file(PAPER / name).sha256 != sha256:
        raise UserError(f"{PAPER / name} has changed since the run began; run again.")
    return PAPER / name
