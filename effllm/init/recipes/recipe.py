"""What a recipe says of itself, and the draft of a study that it makes."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from effllm.init.chosen import ChosenModel
from effllm.init.size import Cut, Size
from effllm.init.wishes import Wishes


@dataclass(frozen=True)
class Draft:
    """A study before it is written.

    extends: what it builds on. sections: its lines below that. tables: those that answer the question, first the one to
    look at.
    """

    extends: Sequence[str]
    sections: Sequence[str]
    tables: Sequence[str]


@dataclass(frozen=True)
class Drafts:
    """One study at every size that a budget may choose. cuts: what it may cut, least harmful first."""

    at: Callable[[Size], Draft]
    cuts: Sequence[Cut]


class Recipe(ABC):
    """A question. takes: the options that mean something to it; needs: those that it cannot do without."""

    question: ClassVar[str]
    takes: ClassVar[frozenset[str]]
    needs: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def drafts(self, wishes: Wishes, models: Sequence[ChosenModel]) -> Drafts:
        """The study; `UserError` for what cannot be studied so."""
