"""Fine-tuning methods: what is trained of a model, and from where it starts."""

from typing import Annotated, Literal

from pydantic import Field

from effllm.fields import Dimension, Fraction, Layers, PositiveFloat, Section, Text


class _LowRankMethod(Section):
    """An update B A of rank r beside each targeted linear layer, which itself is fixed."""

    label: Text | None = Field(default=None, description="Name in the tables; null prints the id.")
    rank: Dimension = Field(description="Rank r of the update.")
    alpha: Dimension = Field(description="The update is scaled by alpha / rank (rsLoRA: alpha / sqrt(rank)).")
    dropout: Annotated[Fraction, Field(lt=1)] = Field(
        default=0.0, description="Dropout of the update's input in training."
    )
    target_modules: Literal["all-linear"] | Annotated[list[Text], Field(min_length=1)] = Field(
        default="all-linear",
        description="Linear layers that get an update: all but the output head, or the last parts of their names, such "
        "as [q_proj, v_proj].",
    )


class LoraMethod(_LowRankMethod):
    """LoRA (Hu et al., arXiv 2106.09685): B starts at zero, the scale is alpha / rank."""

    kind: Literal["lora"]


class LoraPlusMethod(_LowRankMethod):
    """LoRA+ (Hayou et al., arXiv 2402.12354): LoRA whose B learns faster than its A."""

    kind: Literal["lora_plus"]
    learning_rate_ratio: Annotated[PositiveFloat, Field(ge=1, le=1e4)] = Field(
        default=16.0, description="Learning rate of B divided by that of A, which is the suite's."
    )


class RsLoraMethod(_LowRankMethod):
    """Rank-stabilised LoRA (Kalajdzievski, arXiv 2312.03732): the scale is alpha / sqrt(rank)."""

    kind: Literal["rslora"]


class DoraMethod(_LowRankMethod):
    """DoRA (Liu et al., arXiv 2402.09353): a trained magnitude per output, and LoRA on the direction."""

    kind: Literal["dora"]


class PissaMethod(_LowRankMethod):
    """PiSSA (Meng et al., arXiv 2404.02948): B A starts as the principal singular part, by the exact SVD."""

    kind: Literal["pissa"]


class FreezeMethod(Section):
    """The input embeddings and the first layers are fixed, all above is trained."""

    kind: Literal["freeze"]
    label: Text | None = Field(default=None, description="Name in the tables; null prints the id.")
    frozen_layers: Layers = Field(description="Number of layers, counted from the input, that are fixed.")


class FullMethod(Section):
    """Every parameter is trained."""

    kind: Literal["full"]
    label: Text | None = Field(default=None, description="Name in the tables; null prints the id.")


LowRankMethod = LoraMethod | LoraPlusMethod | RsLoraMethod | DoraMethod | PissaMethod
Method = Annotated[LowRankMethod | FreezeMethod | FullMethod, Field(discriminator="kind")]
