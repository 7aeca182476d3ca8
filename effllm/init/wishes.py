"""What a user asks `effllm init` for, checked as far as the words themselves go."""

import shlex
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

from effllm.errors import UserError
from effllm.fields import repeated, shortened, suggestion
from effllm.telemetry.peaks import PEAKS

CPU = "cpu"
_MOST_HOURS = 100_000
_MOST_GPUS = 1024


@dataclass(frozen=True)
class Wishes:
    """The options of the command; None and () where one was not given.

    device: a name of the table of peaks, or `cpu`. benchmarks: () also where none is wanted, then `scored` is False.
    hours: of wall time on so many `gpus`. results: earlier builds, whose rates a plan goes by.
    """

    output: Path
    force: bool
    recipe: str | None
    models: tuple[str, ...]
    precisions: tuple[str, ...]
    benchmarks: tuple[str, ...]
    scored: bool
    data: Path | None
    device: str | None
    hours: float | None = None
    gpus: int = 1
    assume_mfu: float | None = None
    results: Path = Path("results")

    @property
    def on_cpu(self) -> bool:
        """Whether text, sizes and protocol are those of a processor."""
        return self.device == CPU

    def command(self) -> str:
        """The command line that these wishes are, without --force, which is about a file and not about a study."""
        words = ["effllm", "init"]
        words += ["--recipe", self.recipe] if self.recipe else []
        words += [word for model in self.models for word in ("--model", model)]
        words += ["--precisions", ",".join(self.precisions)] if self.precisions else []
        benchmarks = ",".join(self.benchmarks) or ("" if self.scored else "none")
        words += ["--benchmarks", benchmarks] if benchmarks else []
        words += ["--data", str(self.data)] if self.data else []
        words += ["--device", self.device] if self.device else []
        if self.hours is not None:
            words += ["--hours", f"{self.hours:g}", "--gpus", str(self.gpus)]
            words += ["--assume-mfu", f"{self.assume_mfu:g}"] if self.assume_mfu is not None else []
            words += ["--results", str(self.results)] if self.results != Path("results") else []
        return shlex.join([*words, "-o", str(self.output)])


def wishes_of(arguments: Namespace) -> Wishes:
    """The wishes behind a command line; `UserError` for a word that can mean nothing."""
    benchmarks = _names("--benchmarks", arguments.benchmarks)
    wishes = Wishes(
        output=arguments.output,
        force=arguments.force,
        recipe=arguments.recipe,
        models=tuple(arguments.model),
        precisions=_names("--precisions", arguments.precisions),
        benchmarks=() if benchmarks == ("none",) else benchmarks,
        scored=benchmarks != ("none",),
        data=arguments.data,
        device=arguments.device,
        hours=arguments.hours,
        gpus=1 if arguments.gpus is None else arguments.gpus,
        assume_mfu=arguments.assume_mfu,
        results=arguments.results,
    )
    _check_budget(arguments)
    for word in (*wishes.models, *wishes.precisions, *wishes.benchmarks, str(wishes.data or ""), str(wishes.output)):
        if not all(character.isprintable() for character in word):
            raise UserError(f"{shortened(word)} holds a control character: delete it.")
    if "" in wishes.models:
        raise UserError("--model is empty: write the path of a model, owner/name, or owner/name@COMMIT.")
    if twice := repeated(wishes.models):
        raise UserError(f"--model {twice[0]} is given twice: give it once.")
    if wishes.device is not None and wishes.device != CPU and wishes.device not in PEAKS:
        raise UserError(
            f"--device: nobody knows a {shortened(wishes.device)}; {suggestion(wishes.device, [CPU, *PEAKS])}; "
            "for any other GPU leave it out."
        )
    _check_output(wishes)
    return wishes


def _check_budget(arguments: Namespace) -> None:
    hours, gpus, mfu = arguments.hours, arguments.gpus, arguments.assume_mfu
    if hours is None:
        for option, value in (("--gpus", gpus), ("--assume-mfu", mfu)):
            if value is not None:
                raise UserError(f"{option} {value} means nothing without a budget: give --hours too, or leave it out.")
        return
    # NaN is in no range.
    if not 0 < hours <= _MOST_HOURS:
        raise UserError(f"--hours {hours:g}: give wall hours above 0, and at most {_MOST_HOURS:,}, such as 24.")
    if gpus is not None and not 1 <= gpus <= _MOST_GPUS:
        raise UserError(f"--gpus {gpus}: give the number of GPUs that work at once, from 1 to {_MOST_GPUS:,}.")
    if arguments.device == CPU and gpus not in (None, 1):
        raise UserError(f"--gpus {gpus} means nothing to --device {CPU}: leave it out, for measured jobs run alone.")
    if mfu is not None and not 0 < mfu <= 1:
        raise UserError(f"--assume-mfu {mfu:g}: give the share of its peak that training reaches, such as 0.4.")


def _names(option: str, given: str | None) -> tuple[str, ...]:
    if given is None:
        return ()
    names = tuple(name.strip() for name in given.split(","))
    if not all(names):
        raise UserError(f"{option} {shortened(given)} has an empty name: write names with commas between them.")
    if twice := repeated(names):
        raise UserError(f"{option}: {twice[0]!r:.60} is given twice: give it once.")
    return names


def _check_output(wishes: Wishes) -> None:
    output = wishes.output
    if output.is_dir():
        raise UserError(f"-o {output} is a directory: name a file in it, such as {output / 'mine.yaml'}.")
    if output.exists() and not wishes.force:
        raise UserError(f"-o {output} exists: choose another name, or give --force to write over it.")
    if not output.parent.is_dir():
        raise UserError(f"-o {output}: there is no directory {output.parent}: make it, or choose another.")
