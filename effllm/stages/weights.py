"""A model's weights: their bytes before they exist, from the model's shape, and their number once they do."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effllm.models.costs import describe, parameter_count
from effllm.quantization import read_precision
from effllm.stages.cost import NodeContext, Unknown, number_type
from effllm.stages.request import GB, JobContext
from effllm.study import Study
from effllm.study.agreement import vocabulary_of_stream

if TYPE_CHECKING:
    from effllm.models.costs.shapes import Shape
    from effllm.runtime.artifact import Artifact


# Vocabularies of the hub are not known before they are fetched; none of the paper's is larger.
_LARGEST_VOCABULARY = 152_064


def vocabulary_of(study: Study, tokens: str) -> int:
    """Number of token ids of a stream; of a tokenizer of the hub, at most."""
    return vocabulary_of_stream(study, tokens) or _LARGEST_VOCABULARY


@dataclass(frozen=True)
class Weights:
    """The weights of a model that exists: bytes on disk, and how many parameters they are."""

    bytes: int
    parameters: float

    @property
    def gb_16_bit(self) -> float:
        """GB with 16 bits a parameter."""
        return 2 * self.parameters / GB


def payload_bytes(artifact: "Artifact", suffix: str) -> int:
    """Bytes of an artifact's files whose names end so."""
    return sum(digest.size for name, digest in artifact.manifest.payload.items() if name.endswith(suffix))


def checkpoint_bytes(artifact: "Artifact") -> int:
    """Bytes of an artifact's safetensors."""
    return payload_bytes(artifact, ".safetensors")


def parameters_by_dtype(artifact: "Artifact") -> float:
    """Parameters of a checkpoint whose weights have the type in its config.json; 16 bits each if it names none."""
    try:
        dtype = json.loads((artifact.directory / "model" / "config.json").read_bytes()).get("dtype")
        itemsize = number_type(dtype).itemsize
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        itemsize = 2
    return checkpoint_bytes(artifact) / itemsize


def stored_b(shape: "Shape") -> Mapping[str, Any]:
    """`disk_b` of a checkpoint in the type that its configuration names, as keys of `Cost`."""
    stored = str(getattr(shape, "dtype", None)).removeprefix("torch.")
    try:
        itemsize = number_type(stored).itemsize
    except KeyError:
        return {"reasons": {"disk_b": "its configuration does not say in which type the weights are stored"}}
    return {"disk_b": float(parameter_count(shape).total * itemsize)}


def asked_devices(study: Study, model: str) -> dict[str, int]:
    """The key of a spec for the GPUs that the study asks for; none where they follow from the model's bytes."""
    asked = study.models[model].devices
    return {} if asked is None else {"devices": asked}


def model_directory(job: JobContext) -> Path:
    """Where the checkpoint of a job's model is."""
    return job.artifact("model").directory / "model"


def precision_b(shape: "Shape", precision: Mapping[str, Any]) -> float:
    """Bytes of a model's weights in a precision, by its own formula of packed layers and other parameters."""
    settings, total = read_precision(precision), parameter_count(shape).total
    model = describe(shape)
    packed = model.num_layers * model.layer.matmul_parameters
    return settings.weight_bytes(packed, total - packed)


def parents_precision_b(node: NodeContext, shape: "Shape", name: str = "model") -> float:
    """Bytes of the weights of a node's model, in the precision that it was brought into; raises `Unknown`.

    `name` is that of the input.
    """
    parent = node.config_of(name)
    if parent is None or "precision" not in parent:
        raise Unknown("the precision that its model had is not known any more")
    return precision_b(shape, parent["precision"])
