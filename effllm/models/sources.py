"""Where models come from that the study does not train: the `source` of their entries."""

from typing import Literal

from pydantic import Field, model_validator

from effllm.fields import Repository, Revision, Section, Seed, Text
from effllm.models.architectures import Architecture


class HubModelSource(Section):
    """A model on the hub."""

    kind: Literal["hub"]
    repo: Repository = Field(description="Model repository on the hub.")
    revision: Revision = Field(description="Commit of the repository, 40 hexadecimal digits.")


class LocalModelSource(Section):
    """A model directory on this file system, as `save_pretrained` writes it (safetensors and tokenizer)."""

    kind: Literal["local"]
    path: Text = Field(description="The directory.")


class RandomSource(Section):
    """Random weights of a stated shape: what they cost can be measured without a download, what they answer cannot.

    Scores of such a model are null with the reason "random weights".
    """

    kind: Literal["random"]
    architecture: Architecture = Field(description="Shape of the model, by its model_type, with its vocab_size.")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(default="bfloat16", description="Type of the weights.")
    seed: Seed = Field(default=0, description="Seed of the weights.")

    @model_validator(mode="after")
    def _has_a_vocabulary(self) -> "RandomSource":
        if self.architecture.vocab_size is None:
            raise ValueError(
                "architecture.vocab_size is missing: random weights have no tokenizer to take it from; add it"
            )
        return self
