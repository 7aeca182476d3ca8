"""One training run, on one device or on several ranks: what pretraining and fine-tuning share.

A stage gives a `Setup` (model, data, optimizer) and a function that loads what a run has saved. On one device the
run happens in the stage's own process; otherwise torchrun starts the ranks, each of which makes the same `Setup`.
"""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from effllm.errors import CellFailure
from effllm.models.decoder.kernels.choice import choosing
from effllm.models.recurrent_kernels import recurrent_kernels
from effllm.results.training import HeldOutPoint, LossCurve, LossPoint, RunConditions
from effllm.runtime.artifact import write_text
from effllm.runtime.stage import Job
from effllm.telemetry import Telemetry, device_info
from effllm.telemetry.busy import warn_if_busy
from effllm.training.arguments import gather_by_layer, training_arguments
from effllm.training.callbacks import ReportProgress, ScoreOnTheWay, StopAtNaN
from effllm.training.checkpoints import MarkComplete, latest_complete
from effllm.training.determinism import be_deterministic
from effllm.training.preemption import SaveAndStop
from effllm.training.settings import Recipe
from effllm.training.step_timing import MeasureSteps

SAMPLE_PERIOD_S = 0.1
"""As often as power sensors are updated. The second of arXiv 2505.13840 is near the length of a step, and readings that
keep time with the steps see the same part of each."""
TRAINED = "trained"
_HELD_OUT_LOSS, _HELD_OUT_TOKENS = "held_out_loss", "held_out_tokens"


_Model = TypeVar("_Model", bound=nn.Module)


class MapStyle(Protocol):
    """What torch's loaders ask of a data set."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True)
class Setup(Generic[_Model]):
    """What is trained.

    model: weights on the CPU, the same on every rank. dataset: map-style. collate: samples to a batch.
    make_optimizer: None leaves AdamW over all trainable parameters.
    kernels: by module, the kernel that the recipe asks for, as `choice.choosing` takes it.
    forward_options: what every forward pass in training is told beside the batch.
    tokens_of_step, flops_of_step: tokens and model FLOPs of all ranks in the step after so many; None without formula.
    shuffle: whether the recipe's seed shuffles the dataset; otherwise it is in the order of training.
    take: called with every batch before the model sees it. callbacks: run before checkpoints are marked complete.
    score_after: steps after which `score` gives the model's held-out loss, and over how many tokens; on every rank.
    keeps_weights: whether anyone reads what was trained; several ranks write it down for that.
    """

    recipe: Recipe
    model: _Model
    dataset: MapStyle
    collate: Callable[[list], dict[str, torch.Tensor]]
    tokens_of_step: Callable[[int], int]
    flops_of_step: Callable[[int], float] | None
    make_optimizer: Callable[[nn.Module], torch.optim.Optimizer] | None = None
    shuffle: bool = True
    take: Callable[[dict[str, Any]], None] | None = None
    callbacks: Sequence[TrainerCallback] = ()
    forward_options: Mapping[str, Any] = field(default_factory=dict)
    kernels: Mapping[str, str] = field(default_factory=dict)
    score_after: Collection[int] = ()
    score: Callable[[_Model], tuple[float, int]] | None = None
    keeps_weights: bool = True


class _Trainer(Trainer):
    """The Trainer with the setup's optimizer, made once the model is where it will be trained."""

    def __init__(self, setup: Setup[Any], **arguments: Any):
        self.setup = setup
        super().__init__(**arguments)

    def create_optimizer(self, *arguments: Any, **keywords: Any) -> torch.optim.Optimizer:
        if self.setup.make_optimizer is None:
            return super().create_optimizer(*arguments, **keywords)
        if self.optimizer is None:
            assert self.model is not None
            self.optimizer = self.setup.make_optimizer(self.model)
        return self.optimizer

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *arguments: Any, **keywords: Any) -> torch.Tensor:
        if self.setup.take is not None:
            self.setup.take(inputs)
        return super().training_step(model, inputs, *arguments, **keywords)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Log the held-out loss. Checkpoints carry the log, so a resumed run has every point once."""
        assert self.setup.score is not None
        loss, tokens = self.setup.score(self.model)
        self.log({_HELD_OUT_LOSS: loss, _HELD_OUT_TOKENS: tokens})
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, {})
        return {}

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *arguments: Any, **keywords: Any) -> Any:
        return super().compute_loss(model, {**inputs, **self.setup.forward_options}, *arguments, **keywords)


def train(
    job: Job, recipe: Recipe, setup: Callable[[Job], Setup[_Model]], load: Callable[[Job, Path], _Model]
) -> tuple[_Model, LossCurve]:
    """Train, or go on from the last complete checkpoint in the scratch; the trained model and its loss curve.

    Writes `records/loss_curve.json`, `records/efficiency.json` and `records/telemetry/`. `load` reads a model that the
    ranks have saved. Raises CellFailure: nan for a lost run, oom where it does not fit.
    """
    if recipe.parallel.strategy == "single":
        made = setup(job)
        run_rank(job, made)
        model = made.model
    else:
        # Only a run of several ranks pays for what starts them.
        from effllm.training.ranks import run_ranks

        run_ranks(job, recipe.parallel)
        model = load(job, job.scratch / TRAINED)
    return model, LossCurve.read(job.output)


def run_rank(job: Job, setup: Setup[Any]) -> Trainer:
    """The part of one rank, which is all of it on one device; the first rank writes the records."""
    recipe = setup.recipe
    if recipe.deterministic:
        be_deterministic()
    arguments = training_arguments(recipe, job.scratch, setup.shuffle)
    if recipe.parallel.strategy == "zero3":
        gather_by_layer(setup.model)
    is_first = arguments.process_index == 0
    checkpoint = latest_complete(job.scratch, delete=is_first)
    steps_before = int(checkpoint.name.rsplit("-", 1)[1]) if checkpoint else 0
    if checkpoint and is_first:
        print(f"progress: {job.id} going on from step {steps_before}", flush=True)
    device = str(arguments.device) if arguments.device.type == "cuda" else "cpu"
    callbacks: list[Any] = [*setup.callbacks, ScoreOnTheWay(setup.score_after), MarkComplete(), StopAtNaN()]
    callbacks.append(SaveAndStop(job.id))
    if not is_first:
        return _run(setup, arguments, callbacks, checkpoint)[0]
    warn_if_busy(device, job.id)
    with Telemetry(job.records / "telemetry", device=device, period_s=SAMPLE_PERIOD_S) as telemetry:
        measure = MeasureSteps(telemetry)
        trainer, kernels = _run(setup, arguments, [*callbacks, ReportProgress(job.id), measure], checkpoint)
    job.write(_loss_curve(setup, trainer.state.log_history))
    conditions = RunConditions(
        device=device_info(device),
        kernels=kernels,
        resumed_at_step=steps_before,
        strategy=recipe.parallel.strategy,
        threads=torch.get_num_threads(),
        world_size=recipe.parallel.world_size,
    )
    job.write(measure.efficiency(setup.tokens_of_step, setup.flops_of_step, recipe.dtype, conditions))
    return trainer


def _run(
    setup: Setup[Any], arguments: TrainingArguments, callbacks: list[Any], checkpoint: Path | None
) -> tuple[Trainer, dict[str, dict[str, str | None]]]:
    """Train; the trainer, and which kernels its model's modules ran by (`choice.choosing`)."""
    try:
        trainer = _Trainer(
            setup,
            model=setup.model,
            args=arguments,
            train_dataset=setup.dataset,
            data_collator=setup.collate,
            callbacks=callbacks,
        )
        with choosing(setup.kernels) as used, recurrent_kernels(setup.model):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except torch.OutOfMemoryError as error:
        raise CellFailure("oom", str(error).splitlines()[0]) from None
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        raise CellFailure("oom", str(error).splitlines()[0]) from None
    return trainer, used


def _loss_curve(setup: Setup[Any], log: Sequence[Mapping[str, Any]]) -> LossCurve:
    curve = [LossPoint(step=int(entry["step"]), loss=entry["loss"]) for entry in log if "loss" in entry]
    if not setup.score_after:
        return LossCurve(curve=curve)
    held_out = [
        HeldOutPoint(
            step=(step := int(entry["step"])),
            tokens_seen=sum(map(setup.tokens_of_step, range(step))),
            loss=entry[_HELD_OUT_LOSS],
            tokens=int(entry[_HELD_OUT_TOKENS]),
        )
        for entry in log
        if _HELD_OUT_LOSS in entry
    ]
    return LossCurve(curve=curve, held_out=held_out)


def write_failure(job: Job, rank: int, failure: CellFailure) -> None:
    """Leave a rank's verdict on the cell where the stage's own process looks for it."""
    write_text(job.scratch / f"failure-{rank}.json", json.dumps({"status": failure.status, "reason": failure.reason}))
