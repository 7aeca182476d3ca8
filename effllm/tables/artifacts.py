"""What tables read from artifacts: results with their status, never a traceback for a failed cell."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from effllm.errors import Status
from effllm.results.base import ResultFile
from effllm.results.evaluation import Evaluation
from effllm.results.fidelity import FidelityResult, SampleSummary, SamplingCost
from effllm.results.overlap import ItemsOverlap
from effllm.results.profile import Profile
from effllm.results.quantization import Quantization
from effllm.results.serving import Serving
from effllm.results.training import DiffusionQuality, Efficiency, FinetuningQuality, PretrainingQuality, TuningQuality
from effllm.runtime.artifact import Artifact, Manifest

# The file of the payload that holds the figures of each stage.
PAYLOADS: Mapping[str, type[ResultFile]] = {
    "pretrain": PretrainingQuality,
    "finetune": FinetuningQuality,
    "diffuse": DiffusionQuality,
    "tune": TuningQuality,
    "quantize": Quantization,
    "sample": SampleSummary,
    "fidelity": FidelityResult,
    "evaluate": Evaluation,
    "overlap": ItemsOverlap,
    "profile": Profile,
    "serve": Serving,
}
# Stages with a record of the same: not part of the artifact's identity, so checked against the provenance.
RECORDS: Mapping[str, type[ResultFile]] = {
    **dict.fromkeys(("pretrain", "finetune", "diffuse", "tune"), Efficiency),
    "sample": SamplingCost,
}
Content = TypeVar("Content", bound=ResultFile)


@dataclass(frozen=True)
class Result(Generic[Content]):
    """The figures of one artifact: `content` and, where the stage has one, `record`; None unless `status` is ok."""

    artifact: Artifact
    content: Content | None
    record: Any = None

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


def read_results(stage: str, manifests: Iterable[str]) -> dict[str, Result[Any]]:
    """Results by artifact id; what is read is checked first, against its manifest or its provenance.

    `UserError` names a damaged file, or one that another version wrote.
    """
    results: dict[str, Result[Any]] = {}
    for path in manifests:
        artifact = Artifact.open(path)
        content = record = None
        if artifact.manifest.status == "ok":
            artifact.verify_file(PAYLOADS[stage].FILE)
            content = PAYLOADS[stage].read(artifact.directory)
            if stage in RECORDS:
                artifact.verify_record(RECORDS[stage].FILE)
                record = RECORDS[stage].read(artifact.directory)
        results[artifact.manifest.id] = Result(artifact, content, record)
    return results
