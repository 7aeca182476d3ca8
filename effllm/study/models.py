"""Models under test and precisions."""

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from effllm.fields import Dimension, Fraction, Id, PlainId, PositiveInt, Repository, Revision, Section, Seed, Text
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


class Calibration(Section):
    """What a post-training quantizer measures activations on: a corpus's training text, or random tokens.

    Random tokens are for random weights, which have no tokenizer: what they take to quantize and to run is that of
    text, what they answer is as little worth as before.
    """

    corpus: Id | None = Field(default=None, description="Id of the corpus whose training text is taken.")
    tokens: Id | None = Field(
        default=None, description="Id of a synthetic token stream, in place of a corpus, for models of kind random."
    )
    samples: PositiveInt = Field(description="Number of sequences.")
    sequence_length: Dimension = Field(description="Tokens per sequence.")
    seed: Seed = Field(default=0, description="Seed of the choice of documents, or of a stream's sequences.")

    @property
    def source(self) -> str:
        """Id of the corpus or of the token stream."""
        return str(self.corpus or self.tokens)

    @model_validator(mode="after")
    def _names_one_source(self) -> "Calibration":
        if (self.corpus is None) == (self.tokens is None):
            raise ValueError(
                "name either corpus, for text, or tokens, a synthetic stream for models of random weights, not "
                + ("neither" if self.corpus is None else f"both ({self.corpus!r} and {self.tokens!r})")
            )
        return self

    @model_serializer(mode="wrap")
    def _only_the_named_source(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A key that a study does not use has no place in its specs.
        return {key: value for key, value in serialize(self).items() if value is not None}


class CastPrecision(Section):
    """Weights cast to a 16-bit type."""

    kind: Literal["cast"]
    dtype: Literal["bfloat16", "float16"] = Field(description="Type of the weights and of the arithmetic.")

    @property
    def nominal_bits(self) -> int:
        """Bits per weight, the overhead of scales left out."""
        return 16


class GptqPrecision(Section):
    """Weights of the decoder's linear layers in integers by GPTQ (Frantar et al., arXiv 2210.17323)."""

    kind: Literal["gptq"]
    bits: Literal[2, 3, 4, 8] = Field(description="Bits per weight.")
    group_size: Literal[-1, 32, 64, 128] = Field(
        description="Weights that share a scale and a zero point; -1 is one group per output channel."
    )
    act_order: bool = Field(description="Quantize columns by decreasing activation (desc_act).")
    symmetric: bool = Field(default=True, description="Symmetric ranges, with no zero point.")
    damping: Annotated[Fraction, Field(gt=0)] = Field(
        description="Share of the mean diagonal added to the Hessian's diagonal (damp_percent)."
    )
    compute_dtype: Literal["bfloat16", "float16"] = Field(
        default="bfloat16", description="Type of the layers left unquantized and of the arithmetic."
    )
    kernel: Literal["auto", "marlin", "exllama_v2", "triton", "torch"] = Field(
        default="auto",
        description="Kernel that runs the weights wherever they are loaded, noted in the checkpoint; auto leaves it to "
        "gptqmodel, which takes the fastest that the machine has or can compile. profile.json says which one ran.",
    )
    calibration: Calibration = Field(description="Calibration set.")

    @model_serializer(mode="wrap")
    def _only_a_chosen_kernel(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in serialize(self).items() if (key, value) != ("kernel", "auto")}

    @property
    def nominal_bits(self) -> int:
        """Bits per weight, the overhead of scales left out."""
        return self.bits


Precision = Annotated[CastPrecision | GptqPrecision, Field(discriminator="kind")]
