"""Settings of diffusion: objectives, and samplers. Nothing here imports torch."""

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from effllm.fields import Dimension, Float, Fraction, Section

# Share of an image's variance that the last step of a chain leaves: sampling begins with noise alone, and divides by
# the root of it.
_LEAST_KEPT, _MOST_KEPT = 1e-12, 0.1


class Ddpm(Section):
    """Denoising diffusion with a linear schedule (Ho et al. 2020), the noise predicted, as DiT is trained."""

    kind: Literal["ddpm"] = Field(description="Noise is added by a chain of steps, and predicted.")
    steps: Annotated[Dimension, Field(ge=2, le=100_000)] = Field(default=1000, description="Steps of the chain.")
    beta_first: Annotated[Float, Field(ge=1e-6, lt=1)] = Field(default=1e-4, description="Variance of the first step.")
    beta_last: Annotated[Float, Field(ge=1e-6, lt=1)] = Field(default=0.02, description="Variance of the last step.")
    bound_weight: Annotated[Float, Field(ge=0)] = Field(
        default=1.0,
        description="Weight, where sigma is learned, of a step's term of the variational bound in bits a dimension, "
        "by which sigma alone is trained: Nichol and Dhariwal's 0.001 times 1,000 steps.",
    )

    @model_validator(mode="after")
    def _ends_in_noise(self) -> "Ddpm":
        slope = (self.beta_last - self.beta_first) / (self.steps - 1)
        kept = math.exp(sum(math.log1p(-self.beta_first - slope * step) for step in range(self.steps)))
        if not _LEAST_KEPT <= kept <= _MOST_KEPT:
            why = "float32 cannot tell from nothing" if kept < _LEAST_KEPT else "is not noise alone, as samples begin"
            raise ValueError(
                f"steps {self.steps} of variances from {self.beta_first:g} to {self.beta_last:g} leave {kept:.2g} of "
                f"an image, which {why}: write beta_last {min(0.9, 20 / self.steps):.2g}, or change steps"
            )
        return self


class Flow(Section):
    """Rectified flow (Liu et al. 2022): the straight way from images to noise, and its direction predicted."""

    kind: Literal["flow"] = Field(description="Noise is mixed in on a straight line, and the direction predicted.")
    times: Literal["uniform", "logit_normal"] = Field(
        default="uniform", description="How times are drawn; logit_normal prefers the middle (Esser et al. 2024)."
    )


AnyObjective = Annotated[Ddpm | Flow, Field(discriminator="kind")]


class Sampler(Section):
    """How images are sampled from a trained model."""

    kind: Literal["ddim", "ddpm", "euler"] = Field(
        description="ddim and ddpm for models of kind ddpm: the deterministic way and the chain. euler for flow."
    )
    steps: Dimension = Field(description="Evaluations of the model for an image, without those of guidance.")
    guidance: Annotated[Float, Field(ge=0)] = Field(
        default=1.0, description="Classifier-free guidance; 1 is none, and costs half."
    )
    clip: bool = Field(
        default=False, description="Hold predicted images within -1 and 1, as befits pixels and not latents."
    )

    @property
    def evaluations(self) -> int:
        """Forward passes for an image."""
        return self.steps * (1 if self.guidance == 1 else 2)


class Draws(Section):
    """What is drawn anew for every image of a step."""

    label_dropout: Fraction = Field(
        default=0.1, description="Share of the images that are learned without their label, for guidance."
    )
    flip: bool = Field(default=False, description="Mirror half of the images.")


def check_sampler(sampler: Sampler, objective: "Ddpm | Flow") -> str | None:
    """Why a model of this objective cannot be sampled so; None where it can."""
    if (sampler.kind == "euler") != (objective.kind == "flow"):
        fitting = "euler" if objective.kind == "flow" else "ddim or ddpm"
        return f"kind {sampler.kind} does not sample from a model of kind {objective.kind}: choose {fitting}"
    if isinstance(objective, Ddpm) and not 2 <= sampler.steps <= objective.steps:
        return f"steps {sampler.steps} is not from 2 to the {objective.steps} of the model's chain: change it"
    return None
