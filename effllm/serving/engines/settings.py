"""What every kind of engine has in common in a study. Nothing here imports torch."""

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from effllm.fields import Section
from effllm.serving.load import Load

if TYPE_CHECKING:
    from effllm.runtime.artifact import Artifact
    from effllm.serving.engine import Engine


@dataclass(frozen=True)
class Served:
    """What an engine is to serve.

    artifact: the model in its precision, of stage quantize. devices: what it may use. longest: tokens of the longest
    request, prompt and output together. scratch: a directory for what the engine writes while it runs. log: a file for
    what a server says.
    """

    id: str
    artifact: "Artifact"
    devices: tuple[str, ...]
    longest: int
    scratch: Path
    log: Path

    @property
    def directory(self) -> Path:
        """The checkpoint."""
        return self.artifact.directory / "model"


class EngineSettings(Section):
    """An engine and the settings that it runs with.

    To add one: a file with a subclass that has a literal `kind`, and its line in `ENGINES`.
    """

    kind: Any
    in_process: ClassVar[bool] = False
    """Whether it computes in the stage's own process, on devices that the stage chooses."""

    @abstractmethod
    def open(self, served: Served) -> "Engine":
        """The engine, not yet started. Raises as its `start` does."""

    def misfit(self, load: Load) -> str | None:
        """Why a load cannot be served, as the end of a sentence; None where nothing speaks against it."""
        return None

    def cached_tokens(self) -> int | None:
        """Tokens that its cache holds; None where the engine decides that itself, or its bytes are given."""
        return None

    def cache_b(self) -> float | None:
        """Bytes of its cache; None where they follow from its tokens, or the engine decides that itself."""
        return None

    def batch_tokens(self) -> int:
        """Tokens that are computed at once at most."""
        return 1
