"""What tables read from artifacts: results with their status, never a traceback for a failed cell."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from effllm.artifact import Artifact, Manifest
from effllm.errors import Status

# The JSON payload that holds the figures of each stage.
RESULT_FILES = {
    "pretrain": "training.json",
    "quantize": "quantization.json",
    "evaluate": "evaluation.json",
    "profile": "profile.json",
}


@dataclass(frozen=True)
class Result:
    """The figures of one artifact: `content` is None unless `status` is ok."""

    artifact: Artifact
    content: Mapping[str, Any] | None

    @property
    def manifest(self) -> Manifest:
        return self.artifact.manifest

    @property
    def status(self) -> Status:
        return self.manifest.status

    @property
    def reason(self) -> str | None:
        return self.manifest.reason


def read_results(stage: str, manifests: Iterable[str]) -> dict[str, Result]:
    """Results by artifact id; the payload that is read is checked against its manifest first."""
    results = {}
    for path in manifests:
        artifact = Artifact.open(path)
        content = None
        if artifact.manifest.status == "ok":
            artifact.verify_file(RESULT_FILES[stage])
            content = artifact.json(RESULT_FILES[stage])
        results[artifact.manifest.id] = Result(artifact, content)
    return results
