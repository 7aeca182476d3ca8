"""What a user asks `effllm init` for, checked as far as the words themselves go."""

import shlex
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

from effllm.errors import UserError
from effllm.fields import repeated, shortened, suggestion
from effllm.telemetry.peaks import PEAKS

CPU = "cpu"


@dataclass(frozen=True)
class Wishes:
    """The options of the command; None and () where one was not given.

    device: a name of the table of peaks, or `cpu`. benchmarks: () also where none is wanted, then `scored` is False.
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
    )
    for word in (*wishes.models, *wishes.precisions, *wishes.benchmarks, str(wishes.data or ""), str(wishes.output)):
        if not all(character.isprintable() for character in word):
            raise UserError(f"{shortened(word)} holds a control character: delete it.")
    if twice := repeated(wishes.models):
        raise UserError(f"--model {twice[0]} is given twice: give it once.")
    if wishes.device is not None and wishes.device != CPU and wishes.device not in PEAKS:
        raise UserError(
            f"--device: nobody knows a {shortened(wishes.device)}; {suggestion(wishes.device, [CPU, *PEAKS])}; "
            "for any other GPU leave it out."
        )
    _check_output(wishes)
    return wishes


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
