"""Models under test and precisions."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from effllm.fields import Id, PlainId, Repository, Revision, Section, Seed, Text
from effllm.study.architectures import Architecture


class PretrainedSource(Section):
    """A model that this study trains."""

    kind: Literal["pretrained"]
    run: Id = Field(description="Id of the pretraining run.")


class HubModelSource(Section):
    """A model on the hub."""

    kind: Literal["hub"]
    repo: Repository = Field(description="Model repository on the hub.")
    revision: Revision = Field(description="Commit of the repository, 40 hexadecimal digits.")


class LocalModelSource(Section):
    """A model directory on this file system, as `save_pretrained` writes it (safetensors and tokenizer)."""

    kind: Literal["local"]
    path: Text = Field(description="The directory.")


class FinetunedSource(Section):
    """A model that this study fine-tunes; an adapter is merged into its base model."""

    kind: Literal["finetuned"]
    suite: PlainId = Field(description="Id of the fine-tuning suite.")
    model: Id = Field(description="Id of the base model, one of the suite's.")
    method: PlainId = Field(description="Id of the method, one of the suite's.")

    @property
    def node(self) -> str:
        """Id of the node that fine-tunes it."""
        return f"{self.model}.{self.suite}.{self.method}"


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


ModelSource = Annotated[
    PretrainedSource | HubModelSource | LocalModelSource | FinetunedSource | RandomSource, Field(discriminator="kind")
]


class Model(Section):
    """A model under test."""

    source: ModelSource = Field(description="Where the weights come from: pretrained, hub, local, finetuned or random.")
    label: Text | None = Field(default=None, description="Name in the tables; null prints the id.")
    precisions: dict[PlainId, dict[str, Any]] = Field(
        default_factory=dict,
        description="Settings of single precisions that differ for this model, by precision id and key, "
        "such as {int4: {group_size: 32}}.",
    )
