"""Transformers of pipelines before they are there: by what the study names; nothing here imports torch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from effllm.models.checkpoint.files import CONFIG, read_object
from effllm.models.checkpoint.headers import read_headers
from effllm.models.generators import FAMILIES
from effllm.models.generators.check import family_of, is_needed
from effllm.models.generators.family import Family, Layer

_PUBLISHED = "published.json"


@dataclass(frozen=True)
class TransformerShape:
    """The transformer of a pipeline: its family, and its own configuration.

    text_parameters: of the pipeline's text encoders together; None where nothing here tells it.
    """

    family: Family
    config: Mapping[str, Any]
    text_parameters: int | None = None

    def layers(self) -> dict[str, Layer]:
        """Its linear layers by their names."""
        return self.family.layers(self.config)

    def parameters(self) -> int:
        """All of them."""
        linear = sum(layer.outputs * (layer.inputs + 1) for layer in self.layers().values())
        return linear + self.family.loose_parameters(self.config)

    def blocks(self) -> tuple[int, int]:
        """Their number, and their width."""
        return self.config["num_layers"], self.config["num_attention_heads"] * self.config["attention_head_dim"]


def shape_of_source(source: Mapping[str, Any]) -> TransformerShape:
    """The transformer that a slice of the study names; ValueError, with the reason, where nothing here tells it."""
    if source["kind"] == "local":
        directory = Path(source["path"])
        family = family_of(directory, source["path"])
        encoders = [part for part in family.parts if part.startswith("text_encoder")]
        parameters = sum(parameters_of(directory / part, source["path"]) for part in encoders)
        return TransformerShape(family, read_object(directory / "transformer" / CONFIG, source["path"]), parameters)
    if source["kind"] == "tiny":
        raise ValueError("pipelines of kind tiny are too small for formulas to tell their time")
    content = json.loads(Path(__file__).with_name(_PUBLISHED).read_text())["pipelines"].get(source["repo"])
    if content is None:
        raise ValueError(f"the transformer of {source['repo']} is not known here before it is fetched")
    return TransformerShape(FAMILIES[content["family"]], content["transformer"], content["text_parameters"])


def parameters_of(directory: Path, where: str) -> int:
    """Parameters of a part of a pipeline; `UserError`, beginning with `where`, for files that are damaged."""
    names = sorted(path.name for path in directory.glob("*.safetensors") if is_needed(f"{directory.name}/{path.name}"))
    return sum(tensor.elements for tensor in read_headers(directory, names, where).values())
