"""Held-out losses during training: after which steps, of what, and outside what is measured; rates by width."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import TrainerControl, TrainerState

from effllm.data.tokens import PackedTokens
from effllm.models.families import model_config, random_model
from effllm.study import load_study
from effllm.training.callbacks import ScoreOnTheWay
from effllm.training.held_out import held_out_loss, loss_on_the_way
from effllm.training.settings import HeldOutCurve, PretrainingRun
from effllm.training.step_timing import WARMUP_STEPS, MeasureSteps
from tests.conftest import REPOSITORY

RUN = load_study(REPOSITORY / "config" / "tiny.yaml").pretraining["gqa-0.3m"]


def changed(**changes: Any) -> PretrainingRun:
    """The run of the embedded study with other settings."""
    return PretrainingRun.model_validate(RUN.plain() | changes)


def test_points_halve_from_the_last_step_and_none_is_within_the_warm_up() -> None:
    assert HeldOutCurve(points=4).steps(120) == [15, 30, 60, 120]
    assert HeldOutCurve(points=3).steps(121) == [30, 60, 121]
    assert changed(held_out_curve={"points": 4}).held_out_curve == HeldOutCurve(points=4)
    with pytest.raises(ValidationError, match=r"first point after step 7, within the warm-up of 10 steps: lower it"):
        changed(held_out_curve={"points": 5})


def test_random_tokens_have_no_curve(tmp_path: Path) -> None:
    study = tmp_path / "study.yaml"
    study.write_text(
        f"extends: {REPOSITORY / 'config' / 'tiny.yaml'}\ntokens: {{noise: {{kind: synthetic, tokens: 100000, "
        "vocab_size: 2048}}\npretraining: {noisy: {like: gqa-0.3m, tokens: noise, held_out_curve: {points: 2}}}\n"
    )
    with pytest.raises(Exception, match=r"pretraining.noisy.held_out_curve: 'noise' are random tokens"):
        load_study(study)


@pytest.mark.parametrize(
    ("exponent", "rates"), [(-1.0, (2e-3, 2e-4)), (0.0, (4e-3, 4e-4)), (0.5, (5.65685e-3, 5.65685e-4))]
)
def test_rates_follow_the_width(exponent: float, rates: tuple[float, float]) -> None:
    rule = {"width": RUN.architecture.hidden_size // 2, "exponent": exponent}
    optimizer = changed(learning_rate_by_width=rule).scaled_optimizer
    assert (optimizer.learning_rate, optimizer.minimum_learning_rate) == pytest.approx(rates, rel=1e-5)
    assert optimizer.model_copy(update=RUN.optimizer.model_dump()) == RUN.optimizer == RUN.scaled_optimizer


def test_what_is_not_asked_for_is_in_no_spec() -> None:
    assert not {"held_out_curve", "learning_rate_by_width"} & RUN.plain().keys()
    assert changed(learning_rate_by_width={"width": 64}).plain()["learning_rate_by_width"] == {
        "exponent": -1.0,
        "width": 64,
    }


def test_the_loss_on_the_way_is_the_held_out_loss_and_training_goes_on(builder: Any) -> None:
    stream = PackedTokens.open(builder.build("tokens", "python-docs").directory, "held_out")
    model = random_model(model_config(RUN.architecture, stream.vocab_size), seed=1).train()
    expected = held_out_loss(model, stream, 64, 8)
    state = torch.get_rng_state()
    loss, tokens = loss_on_the_way(model, stream, 64, None)
    assert tokens == expected.tokens and loss == pytest.approx(expected.loss, rel=1e-5)
    part, scored = loss_on_the_way(model, stream, 64, 200)
    assert scored == 199 and part != loss
    assert model.training and torch.equal(state, torch.get_rng_state())
    ids = torch.from_numpy(stream.ids[:64].astype("int64"))[None]
    model(ids, labels=ids).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


class _Windows:
    """A telemetry that notes what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return lambda _: self.told.append(name)


def test_scoring_is_measured_no_more_than_saving() -> None:
    """Steps 6 and 8 are scored, steps 7 and 8 saved; the Trainer scores before it saves."""
    telemetry = _Windows()
    score, measure = ScoreOnTheWay([6, 8]), MeasureSteps(telemetry)
    state, arguments = TrainerState(max_steps=20), None
    control: Any = TrainerControl()
    measure.on_train_begin(arguments, state, control)  # type: ignore[arg-type]
    for step in range(1, 10):
        measure.on_step_begin(arguments, state, control)  # type: ignore[arg-type]
        state.global_step = step
        control.should_save = step in (7, 8)
        score.on_step_end(arguments, state, control)  # type: ignore[arg-type]
        measure.on_step_end(arguments, state, control)  # type: ignore[arg-type]
        if control.should_evaluate:
            telemetry.told.append(f"scored {step}")
            control.should_evaluate = False
            measure.on_evaluate(arguments, state, control)  # type: ignore[arg-type]
        if control.should_save:
            telemetry.told.append(f"saved {step}")
            control.should_save = False
            measure.on_save(arguments, state, control)  # type: ignore[arg-type]
    assert telemetry.told == [
        "begin_window", "pause", "scored 6", "resume", "pause", "saved 7", "resume", "pause", "scored 8", "saved 8",
        "resume",
    ]  # fmt: skip
    assert measure.measured == range(WARMUP_STEPS, 9)
