"""Pretraining runs, models and precisions."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from effllm.study.base import Count, Float, Fraction, Id, PlainId, PositiveFloat, PositiveInt, Revision, Section


class Architecture(Section):
    """The shape of a decoder in the terms of Transformers' configurations; the tokenizer gives the vocabulary."""

    model_type: Literal["llama", "phi3", "qwen2"] = Field(description="Family, as Transformers names it.")
    hidden_size: PositiveInt = Field(description="Width of the residual stream.")
    intermediate_size: PositiveInt = Field(description="Width of the feed-forward layer.")
    num_hidden_layers: PositiveInt = Field(description="Number of decoder layers.")
    num_attention_heads: PositiveInt = Field(description="Number of query heads.")
    num_key_value_heads: PositiveInt = Field(description="Number of key and value heads.")
    max_position_embeddings: PositiveInt = Field(description="Longest sequence in tokens.")
    rope_theta: PositiveFloat = Field(default=10000.0, description="Base of the rotary position embedding.")
    rms_norm_eps: PositiveFloat = Field(default=1e-6, description="Epsilon of RMSNorm.")
    tie_word_embeddings: bool = Field(default=True, description="Share the embedding with the output head.")
    initializer_range: PositiveFloat = Field(default=0.02, description="Standard deviation of initial weights.")

    @model_validator(mode="after")
    def _heads_divide(self) -> "Architecture":
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads "
                f"{self.num_attention_heads}: change one of them"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of num_key_value_heads "
                f"{self.num_key_value_heads}: change one of them"
            )
        return self

    def linear_in_features(self) -> dict[str, int]:
        """Input widths of the decoder's linear layers, by layer name (the quantizer groups along them)."""
        return {
            "attention projections": self.hidden_size,
            "attention output": self.hidden_size,
            "feed-forward input": self.hidden_size,
            "feed-forward output": self.intermediate_size,
        }


class AdamW(Section):
    """AdamW with linear warm-up and cosine decay."""

    learning_rate: PositiveFloat = Field(description="Peak learning rate.")
    minimum_learning_rate: Annotated[Float, Field(ge=0)] = Field(description="Learning rate at the last step.")
    warmup_steps: Count = Field(description="Optimizer steps of linear warm-up.")
    beta1: Fraction = Field(default=0.9, description="Decay of the first moment.")
    beta2: Fraction = Field(default=0.95, description="Decay of the second moment.")
    epsilon: PositiveFloat = Field(default=1e-8, description="Added to the denominator.")
    weight_decay: Annotated[Float, Field(ge=0)] = Field(default=0.1, description="Decoupled weight decay.")
    max_grad_norm: PositiveFloat = Field(default=1.0, description="Gradients are clipped to this norm.")

    @model_validator(mode="after")
    def _decays(self) -> "AdamW":
        if self.minimum_learning_rate > self.learning_rate:
            raise ValueError(
                f"minimum_learning_rate {self.minimum_learning_rate} exceeds learning_rate {self.learning_rate}: "
                "lower it"
            )
        return self


class PretrainingRun(Section):
    """Training of one architecture from random weights on a token stream."""

    tokens: Id = Field(description="Id of the token stream.")
    architecture: Architecture = Field(description="Shape of the model.")
    sequence_length: PositiveInt = Field(description="Tokens per training sequence.")
    global_batch_size: PositiveInt = Field(description="Sequences per optimizer step, over all devices.")
    micro_batch_size: PositiveInt = Field(description="Sequences per forward pass on one device.")
    max_steps: PositiveInt = Field(description="Optimizer steps.")
    optimizer: AdamW = Field(description="Optimizer and schedule.")
    dtype: Literal["float32", "bfloat16"] = Field(
        default="bfloat16", description="Arithmetic: float32, or bfloat16 mixed precision over float32 weights."
    )
    checkpoint_every_steps: PositiveInt = Field(description="Steps between checkpoints to resume from.")
    log_every_steps: PositiveInt = Field(default=10, description="Steps between points of the loss curve.")
    seed: Count = Field(default=0, description="Seed of the initial weights and of the order of sequences.")

    @model_validator(mode="after")
    def _fits(self) -> "PretrainingRun":
        if self.global_batch_size % self.micro_batch_size:
            raise ValueError(
                f"global_batch_size {self.global_batch_size} is not a multiple of micro_batch_size "
                f"{self.micro_batch_size}: change one of them"
            )
        if self.sequence_length > self.architecture.max_position_embeddings:
            raise ValueError(
                f"sequence_length {self.sequence_length} exceeds max_position_embeddings "
                f"{self.architecture.max_position_embeddings}: raise it in the architecture"
            )
        if self.checkpoint_every_steps % self.log_every_steps:
            raise ValueError(
                f"checkpoint_every_steps {self.checkpoint_every_steps} is not a multiple of log_every_steps "
                f"{self.log_every_steps}: the loss curve of a resumed run would differ; change one of them"
            )
        if self.optimizer.warmup_steps >= self.max_steps:
            raise ValueError(
                f"optimizer.warmup_steps {self.optimizer.warmup_steps} leaves none of max_steps {self.max_steps} "
                "for training: lower it"
            )
        return self


class PretrainedSource(Section):
    """A model that this study trains."""

    kind: Literal["pretrained"]
    run: Id = Field(description="Id of the pretraining run.")


class HubModelSource(Section):
    """A model on the hub."""

    kind: Literal["hub"]
    repo: str = Field(description="Model repository on the hub.")
    revision: Revision = Field(description="Commit of the repository, 40 hexadecimal digits.")


class LocalModelSource(Section):
    """A model directory on this file system, as `save_pretrained` writes it (safetensors and tokenizer)."""

    kind: Literal["local"]
    path: str = Field(description="The directory.")


class RandomSource(Section):
    """Random weights of a stated shape: what they cost can be measured without a download, what they answer cannot.

    Scores of such a model are null with the reason "random weights".
    """

    kind: Literal["random"]
    architecture: Architecture = Field(description="Shape of the model, by its model_type.")
    vocab_size: Annotated[int, Field(ge=2)] = Field(description="Size of the vocabulary; there is no tokenizer.")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(default="bfloat16", description="Type of the weights.")
    seed: Count = Field(default=0, description="Seed of the weights.")


ModelSource = Annotated[
    PretrainedSource | HubModelSource | LocalModelSource | RandomSource, Field(discriminator="kind")
]


class Model(Section):
    """A model under test."""

    source: ModelSource = Field(description="Where the weights come from: pretrained, hub, local or random.")
    label: str | None = Field(default=None, description="Name in the tables; null prints the id.")
    precisions: dict[PlainId, dict[str, Any]] = Field(
        default_factory=dict,
        description="Settings of single precisions that differ for this model, by precision id and key, "
        "such as {int4: {group_size: 32}}.",
    )


class Calibration(Section):
    """The text on which a post-training quantizer measures activations: the training part of a corpus."""

    corpus: Id = Field(description="Id of the corpus.")
    samples: PositiveInt = Field(description="Number of sequences.")
    sequence_length: PositiveInt = Field(description="Tokens per sequence.")
    seed: Count = Field(default=0, description="Seed of the choice of documents.")


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
    calibration: Calibration = Field(description="Calibration set.")

    @property
    def nominal_bits(self) -> int:
        """Bits per weight, the overhead of scales left out."""
        return self.bits


Precision = Annotated[CastPrecision | GptqPrecision, Field(discriminator="kind")]
