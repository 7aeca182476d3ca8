"""What tables read from artifacts: results with their status, never a traceback for a failed cell."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from effllm.errors import Status, UserError
from effllm.runtime.artifact import Artifact, Manifest

# The JSON payload that holds the figures of each stage.
RESULT_FILES = {
    "pretrain": "training.json",
    "finetune": "training.json",
    "quantize": "quantization.json",
    "evaluate": "evaluation.json",
    "profile": "profile.json",
}
# What was observed while it was built: not part of the artifact's identity, so checked against the provenance.
RECORD_FILES = {
    "pretrain": "records/efficiency.json",
    "finetune": "records/efficiency.json",
}


class Figures(dict[str, Any]):
    """The content of a JSON file; to read a key that it lacks is an error that says what to do."""

    def __init__(self, artifact: Artifact, name: str):
        super().__init__(artifact.json(name))
        self._file, self._directory = artifact.directory / name, artifact.directory

    def __missing__(self, key: str) -> Any:
        raise UserError(
            f"{self._file} has no {key!r}: another version of this program wrote it; delete {self._directory} and "
            "run again."
        )


@dataclass(frozen=True)
class Result:
    """The figures of one artifact: `content` and, where its stage has one, `record`; None unless `status` is ok."""

    artifact: Artifact
    content: Figures | None
    record: Figures | None = None

    @property
    def manifest(self) -> Manifest:
        return self.artifact.manifest

    @property
    def status(self) -> Status:
        return self.manifest.status

    @property
    def reason(self) -> str | None:
        return self.manifest.reason

    @property
    def absent(self) -> str:
        """Why cells are empty that this artifact should have filled."""
        return f"{self.manifest.stage} is {self.status}: {self.reason}"


def read_results(stage: str, manifests: Iterable[str]) -> dict[str, Result]:
    """Results by artifact id; what is read is checked first, against its manifest or its provenance.

    `UserError` names a damaged file. Missing keys are errors where they are read.
    """
    results = {}
    for path in manifests:
        artifact = Artifact.open(path)
        content = record = None
        if artifact.manifest.status == "ok":
            artifact.verify_file(RESULT_FILES[stage])
            content = Figures(artifact, RESULT_FILES[stage])
            if stage in RECORD_FILES:
                artifact.verify_record(RECORD_FILES[stage])
                record = Figures(artifact, RECORD_FILES[stage])
        results[artifact.manifest.id] = Result(artifact, content, record)
    return results
