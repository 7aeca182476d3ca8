"""Command lines whose mistakes are answered in one sentence, as those in a study are."""

import argparse
from collections.abc import Callable, Collection
from typing import NoReturn, TypeVar

from effllm.errors import UserError
from effllm.fields import shortened, suggestion

T = TypeVar("T")


class Parser(argparse.ArgumentParser):
    """argparse, without the list of all options before each error; its subcommands are parsed by it too."""

    def error(self, message: str) -> NoReturn:
        """Raise `UserError` in place of two lines and the end of the process."""
        raise UserError(f"{self.prog}: {' '.join(message.split())}; {self.prog} --help says what there is.")


def number(option: str, example: str) -> Callable[[str], float]:
    """The type of an option that takes a number."""
    return _typed(float, "number", option, example)


def whole_number(option: str, example: str) -> Callable[[str], int]:
    """The type of an option that takes an integer."""
    return _typed(int, "whole number", option, example)


def one_of(option: str, known: Collection[str]) -> Callable[[str], str]:
    """The type of an option that takes one of these names."""

    def read(text: str) -> str:
        if text not in known:
            raise UserError(f"{option} {shortened(text)} is not known; {suggestion(text, known)}.")
        return text

    return read


def _typed(kind: Callable[[str], T], called: str, option: str, example: str) -> Callable[[str], T]:
    def read(text: str) -> T:
        try:
            return kind(text)
        except ValueError:
            raise UserError(
                f"{option} {shortened(text)} is no {called}: write one, such as {option} {example}."
            ) from None

    return read
