"""provenance.json: how an artifact came to be. Recorded, never compared."""

from typing import ClassVar

from pydantic import Field

from effllm.results.base import Part, ResultFile


class RecordDigest(Part):
    """One file below records/."""

    size: int = Field(description="Bytes.")
    sha256: str = Field(description="In hexadecimal digits.")


class GitState(Part):
    """The checkout that holds the package; null where it is none."""

    commit: str | None = Field(description="Its commit.")
    dirty: bool | None = Field(description="Whether tracked files were changed.")


class Host(Part):
    """The machine."""

    name: str = Field(description="Its name in the network.")
    cpu: str = Field(description="Model of its processor.")
    cpus_usable: int = Field(description="Cores that the process could use.")
    platform: str = Field(description="Operating system and its version.")


class Provenance(Part, ResultFile):
    """Code, packages, machine, job and time."""

    FILE: ClassVar[str] = "provenance.json"

    argv: list[str] = Field(default_factory=list, description="The command.")
    code_fingerprint: str | None = Field(default=None, description="sha256 of the stage's sources.")
    git: GitState | None = Field(default=None, description="The checkout.")
    host: Host | None = Field(default=None, description="The machine.")
    packages: dict[str, str | None] = Field(default_factory=dict, description="Versions; null if not installed.")
    python: str | None = Field(default=None, description="Version of Python.")
    slurm_job_id: str | None = Field(default=None, description="The job.")
    start: str | None = Field(default=None, description="UTC.")
    end: str | None = Field(default=None, description="UTC.")
    wall_s: float = Field(description="Seconds from start to end.")
    records: dict[str, RecordDigest] = Field(default_factory=dict, description="Digests of records, by path.")
    manifest_sha256: str | None = Field(default=None, description="Of manifest.json.")
