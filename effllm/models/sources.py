"""Where models come from that the study does not train: the `source` of their entries."""

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from effllm.fields import Id, Repository, Revision, Section, Seed, Text
from effllm.models.architectures import Architecture
from effllm.models.vision_language.architecture import VisionLanguageArchitecture

AnyArchitecture = Annotated[Architecture | VisionLanguageArchitecture, Field(discriminator="model_type")]


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
    architecture: AnyArchitecture = Field(
        description="Shape of the model, by its model_type, with its vocab_size; or of a vision-language model."
    )
    tokenizer: Id | None = Field(
        default=None,
        description="Id of the tokenizer of a vision-language model, which gets the family's image tokens; others have "
        "none.",
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(default="bfloat16", description="Type of the weights.")
    seed: Seed = Field(default=0, description="Seed of the weights.")

    @model_validator(mode="after")
    def _has_a_vocabulary(self) -> "RandomSource":
        if isinstance(self.architecture, VisionLanguageArchitecture):
            if self.tokenizer is None:
                raise ValueError("tokenizer is missing: a vision-language model takes its vocabulary from it; name one")
            if self.architecture.vocab_size is not None:
                raise ValueError(
                    f"architecture.vocab_size: {self.architecture.vocab_size} is the tokenizer's to say: leave it out"
                )
            return self
        if self.tokenizer is not None:
            raise ValueError(
                f"tokenizer: a {self.architecture.model_type} of random weights has none, and {self.tokenizer!r} is "
                "given: leave the key out, or pretrain the model"
            )
        if self.architecture.vocab_size is None:
            raise ValueError(
                "architecture.vocab_size is missing: random weights have no tokenizer to take it from; add it"
            )
        return self

    @model_serializer(mode="wrap")
    def _without_no_tokenizer(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # As it was before there was the key.
        return {key: value for key, value in serialize(self).items() if key != "tokenizer" or value is not None}
