"""Runs of diffusion: models of images trained from random weights."""

from typing import Annotated

from pydantic import Field, model_validator

from effllm.diffusion.settings import AnyObjective, Draws
from effllm.fields import Fraction, Id, PositiveInt
from effllm.models.dit.architecture import DiTArchitecture
from effllm.training.settings import Recipe


class DiffusionRun(Recipe):
    """Training of one diffusion transformer on images."""

    images: Id = Field(description="Id of the images, or of their latents.")
    architecture: DiTArchitecture = Field(description="Shape of the model.")
    objective: AnyObjective = Field(description="What the model is trained towards, by its kind.")
    draws: Draws = Field(default_factory=Draws, description="How images and labels vary from step to step.")
    ema: Annotated[Fraction, Field(lt=1)] | None = Field(
        default=0.9999,
        description="Decay of the moving average of the weights, which is what the run publishes; smaller in the first "
        "steps: (1 + step) / (10 + step). Null publishes the last weights.",
    )
    held_out_draws: PositiveInt = Field(
        default=4, description="Noises and times for each held-out image, whose mean loss is the held-out loss."
    )

    @model_validator(mode="after")
    def _objective_and_model_agree(self) -> "DiffusionRun":
        if self.objective.kind == "flow" and self.architecture.learned_sigma:
            raise ValueError("architecture.learned_sigma: an objective of kind flow has no sigma: write false")
        return self

    @model_validator(mode="after")
    def _weights_can_be_averaged(self) -> "DiffusionRun":
        # DeepSpeed's model holds 16-bit copies or parts of the weights, and its optimizer the weights themselves.
        if self.parallel.strategy.startswith("zero") and self.ema is not None:
            raise ValueError(
                f"parallel.strategy {self.parallel.strategy} hides the weights that ema averages: choose ddp or fsdp2, "
                "or write ema: null"
            )
        return self
