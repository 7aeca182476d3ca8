"""What a job asks of a cluster: run time, host memory and GPUs, as its stage says.

A model that the study trains is sized by its architecture, any other by the artifact that the job reads, which exists
when the job is submitted.
"""

import errno
import os
from collections.abc import Mapping
from pathlib import Path

from effllm.errors import UserError
from effllm.runtime.artifact import Artifact
from effllm.stages import STAGES
from effllm.stages.request import JobContext, Request
from effllm.stages.weights import Weights, checkpoint_bytes
from effllm.study import Study

GPU_STAGES = tuple(name for name, stage in STAGES.items() if stage.uses_device)


def request(
    study: Study,
    stage: str,
    id: str,
    manifests: Mapping[str, str],
    cores: int,
    gpu_memory_b: float | None = None,
) -> Request:
    """What the node `id` of `stage` asks for at its first attempt.

    `manifests` are the paths of its parents' manifests by name; FileNotFoundError, which names it, while one that
    counts is missing; `UserError` for one that is damaged.
    `cores` are the CPU cores it gets; `gpu_memory_b` is the memory of one GPU, None where it is not known.
    """

    def artifact(name: str) -> Artifact:
        return _built(manifests[name])

    def weights() -> Weights:
        return _weights(manifests["model"])

    return STAGES[stage].request(JobContext(study, id, cores, manifests, artifact, weights, gpu_memory_b))


def _weights(manifest: str) -> Weights:
    artifact = _built(manifest)
    try:
        parameters = STAGES[artifact.manifest.spec["stage"]].parameters(artifact)
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{manifest} holds a spec that no stage wrote: delete it and run again.") from None
    return Weights(checkpoint_bytes(artifact), parameters)


def _built(manifest: str) -> Artifact:
    """A parent that exists. Snakemake leaves a resource open for a missing file only if it is an input itself."""
    if not Path(manifest).exists():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), manifest)
    return Artifact.open(manifest)
