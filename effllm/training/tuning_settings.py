"""Suites that fine-tune models of images and videos on captions: methods under one protocol, as for language models."""

from typing import Annotated

from pydantic import Field, model_validator

from effllm.diffusion.settings import Flow
from effllm.fields import Float, Fraction, PlainId, PositiveInt, Section, repeated
from effllm.training.suites import MethodRun, Protocol, Suite

_STRATEGIES = ("single", "ddp")


class Preview(Section):
    """What is drawn before and after the training, to look at: captions of held-out samples, from the same noise."""

    samples: Annotated[PositiveInt, Field(le=64)] = Field(
        default=8, description="How many, each of another caption if there are so many."
    )
    steps: Annotated[PositiveInt, Field(le=1000)] = Field(default=20, description="Steps of Euler.")
    guidance: Annotated[Float, Field(ge=0, le=100)] = Field(
        default=4.0, description="Classifier-free guidance with the empty caption; 1 is none, and costs half."
    )


class _OfCaptions(Protocol):
    """What samples with captions bring."""

    flow: Flow = Field(
        default=Flow(kind="flow", times="logit_normal"), description="Rectified flow, and how its times are drawn."
    )
    shift: Annotated[Float, Field(gt=0, le=100)] = Field(
        default=3.0,
        description="Times t become shift t / (1 + (shift - 1) t), as the models' own schedules have it: more noise.",
    )
    caption_dropout: Annotated[Fraction, Field(lt=1)] = Field(
        default=0.1, description="Share of the samples that are learned with the empty caption, for guidance."
    )
    held_out_times: Annotated[list[Annotated[Float, Field(gt=0, lt=1)]], Field(min_length=1, max_length=64)] = Field(
        default=[0.1, 0.3, 0.5, 0.7, 0.9],
        description="Times, with the shift in them, at which held-out samples are scored: the same noise for all runs.",
    )
    preview: Preview | None = Field(
        default_factory=Preview, description="Samples drawn before and after the training; null draws none."
    )

    @model_validator(mode="after")
    def _scores_each_time_once(self) -> "_OfCaptions":
        if twice := repeated(f"{time:g}" for time in self.held_out_times):
            raise ValueError(f"held_out_times: {twice[0]} is listed twice; list it once")
        return self


class TuningRun(MethodRun, _OfCaptions):
    """One method on one pipeline: a node's slice of the study."""


class TuningSuite(Suite, _OfCaptions):
    """Every method on every pipeline, on one set of captions."""

    captions: PlainId = Field(description="Id of the captions.")

    @model_validator(mode="after")
    def _runs_by_known_strategies(self) -> "TuningSuite":
        for method in self.methods:
            strategy = self.settings_of(self.models[0], method)["parallel"]["strategy"]
            if strategy not in _STRATEGIES:
                raise ValueError(
                    f"parallel of {method}: {strategy} is not known to work for models of images; choose "
                    f"{' or '.join(_STRATEGIES)}"
                )
        return self
