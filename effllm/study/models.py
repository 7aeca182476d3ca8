"""Models under test and precisions."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from effllm.fields import LONGEST_TEXT, Id, PlainId, PositiveInt, Section, Text
from effllm.models.placement import Spread
from effllm.models.sources import HubModelSource, LocalModelSource, RandomSource


class PretrainedSource(Section):
    """A model that this study trains."""

    kind: Literal["pretrained"]
    run: Id = Field(description="Id of the pretraining run.")


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


ModelSource = Annotated[
    PretrainedSource | HubModelSource | LocalModelSource | FinetunedSource | RandomSource, Field(discriminator="kind")
]


class ChatPrompts(Section):
    """Prompts in the tokenizer's chat template, as the Open LLM Leaderboard prompts instruct models."""

    fewshot_as_multiturn: bool = Field(
        default=True, description="Examples as turns of their own, question and answer; false: all in one user's turn."
    )
    system_instruction: Annotated[str, Field(min_length=1, max_length=LONGEST_TEXT)] | None = Field(
        default=None, description="What the system's turn begins with; null: nothing but the task's own description."
    )


class Model(Section):
    """A model under test."""

    source: ModelSource = Field(description="Where the weights come from: pretrained, hub, local, finetuned or random.")
    label: Text | None = Field(default=None, description="Name in the tables; null prints the id.")
    chat: ChatPrompts | None = Field(
        default=None,
        description="For instruct models: {} prompts in the tokenizer's chat template. null prompts in plain text, as "
        "base models are prompted. Benchmarks of sentences and of completions are in plain text always.",
    )
    devices: Annotated[PositiveInt, Field(le=64)] | None = Field(
        default=None,
        description="GPUs of one host over which the model's layers are spread where it is scored and profiled. null "
        "takes as many as its weights, its cache and its workspace need.",
    )
    spread: Spread = Field(
        default="layers",
        description="How a model is on the GPUs that `devices` names where it is profiled. layers: whole layers on "
        "each, which work one after the other. tensor: a part of every layer on each, by Transformers' plan of the "
        "architecture, so that all work at once; 16-bit weights alone, and no CUDA graphs. Scores are by layers.",
    )
    precisions: dict[PlainId, dict[str, Any]] = Field(
        default_factory=dict,
        description="Settings of single precisions that differ for this model, by precision id and key, "
        "such as {int4: {group_size: 32}}.",
    )

    @model_validator(mode="after")
    def _parts_are_of_several(self) -> "Model":
        if self.spread == "tensor" and (self.devices or 1) < 2:
            raise ValueError("spread: tensor is of several GPUs: say of how many as devices, 2 or more, or drop it")
        return self
