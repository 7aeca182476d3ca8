"""What a precision says of itself: settings, bits, support, work and bytes. Nothing here imports torch."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from effllm.fields import Dimension, Id, PositiveInt, Section, Seed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from effllm.models.architecture import ModelShape
    from effllm.models.checkpoint.headers import TensorHeader


class Calibration(Section):
    """What a post-training quantizer measures activations on: a corpus's training text, or random tokens.

    Random tokens are for random weights, which have no tokenizer: what they take to quantize and to run is that of
    text, what they answer is as little worth as before.
    """

    corpus: Id | None = Field(default=None, description="Id of the corpus whose training text is taken.")
    tokens: Id | None = Field(
        default=None, description="Id of a synthetic token stream, in place of a corpus, for models of kind random."
    )
    samples: PositiveInt = Field(description="Number of sequences.")
    sequence_length: Dimension = Field(description="Tokens per sequence.")
    seed: Seed = Field(default=0, description="Seed of the choice of documents, or of a stream's sequences.")

    @property
    def source(self) -> str:
        """Id of the corpus or of the token stream."""
        return str(self.corpus or self.tokens)

    @property
    def stage(self) -> str:
        """The stage that makes it, which is also the name of the input."""
        return "corpus" if self.corpus else "tokens"

    def misfit(self, positions: int | None) -> str | None:
        """Why a model of so many positions cannot read the sequences, key and remedy included; None if it can.

        gptqmodel would cut them, and only log it.
        """
        if positions is None or self.sequence_length <= positions:
            return None
        asked = f"calibration.sequence_length: {self.sequence_length} tokens"
        return f"{asked} exceed the {positions} positions of the model; lower it"

    @model_validator(mode="after")
    def _names_one_source(self) -> "Calibration":
        if (self.corpus is None) == (self.tokens is None):
            raise ValueError(
                "name either corpus, for text, or tokens, a synthetic stream for models of random weights, not "
                + ("neither" if self.corpus is None else f"both ({self.corpus!r} and {self.tokens!r})")
            )
        return self

    @model_serializer(mode="wrap")
    def _only_the_named_source(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A key that a study does not use has no place in its specs.
        return {key: value for key, value in serialize(self).items() if value is not None}


@dataclass(frozen=True)
class PackedLayer:
    """A linear layer as a quantized checkpoint stores it: how many weights it has, and the tensors it is made of."""

    weights: int
    tensors: tuple[str, ...]


class Precision(Section):
    """Base of the precisions. A subclass has `kind`, a literal, and its own settings as fields.

    columns: settings that Table 9 prints; a precision without them leaves the cells empty with `why_empty`.
    works_on_device: whether quantizing uses the accelerator; its peak of memory there has no formula.
    job_minutes: what a quantization job asks for: minutes, and minutes for each GB of the weights in 16 bits.
    """

    columns: ClassVar[tuple[str, ...]] = ()
    why_empty: ClassVar[str] = "the precision has no such setting"
    is_quantized: ClassVar[bool] = True
    works_on_device: ClassVar[bool] = True
    job_minutes: ClassVar[tuple[float, float]] = (60, 6)

    @property
    @abstractmethod
    def nominal_bits(self) -> int:
        """Bits per quantized weight, the overhead of scales left out."""

    @property
    def number(self) -> str | None:
        """What kind of number a weight is stored as, such as `int4`; None for one of no common name."""
        return None

    @property
    @abstractmethod
    def label(self) -> str:
        """What tells precisions apart whose evaluation takes another time."""

    @property
    def work(self) -> str:
        """What tells quantizations apart that take another time per parameter."""
        return self.label

    def calibration_set(self) -> Calibration | None:
        """What activations are measured on; None for a method that measures none."""
        return None

    def misfit(self, shape: "ModelShape") -> str | None:
        """Why a model of this shape cannot be brought into the precision, with the remedy; None if nothing is known."""
        return None

    def misfit_of_widths(self, widths: "Mapping[str, int]") -> str | None:
        """The same of input widths of linear layers, by name: all that is known of a model from its config.json."""
        return None

    def refusal(self, device: str) -> str | None:
        """Why `device` of this machine, `cpu` or `cuda:0`, cannot run the precision; None if nothing is known."""
        return None

    @abstractmethod
    def weight_bytes(self, packed: int, others: int) -> float:
        """Bytes of a checkpoint, scales included; parameters of the layers' matrices, and all others."""

    @abstractmethod
    def quantize(self, source: Path, target: Path, calibration: Path | None, records: Path) -> None:
        """Write the model in `source` to `target`, in a form that `load_causal_lm` loads.

        `calibration` is the artifact that `calibration_set` names. What was observed goes to `records`. Raises
        `CellFailure` where the technique, or this machine's device, cannot have the model, and `UserError` for a
        setting that names what the machine lacks; both before time is spent where that can be known.
        """

    def packed_layers(self, tensors: "Mapping[str, TensorHeader]") -> dict[str, PackedLayer]:
        """The quantized layers among a checkpoint's tensors, by name."""
        return {}

    def load_options(self) -> dict[str, Any]:
        """Further options of `load_causal_lm`, for formats that quantize while they load."""
        return {}

    def running_kernel(self, model: "PreTrainedModel") -> str | None:
        """What runs the quantized layers of a loaded model; None where none is quantized."""
        return None


def misfit_of_groups(group_size: int, widths: Mapping[str, int]) -> str | None:
    """Why groups of this size cannot be cut from layers of these input widths, with the remedy; None if they can."""
    for layer, width in widths.items():
        if group_size > 0 and width % group_size:
            # One that divides the other layers too.
            divisor = next((size for size in (128, 64, 32) if not any(each % size for each in widths.values())), None)
            remedy = f"a divisor, such as {divisor}, or -1" if divisor else "-1, a group for each row"
            return f"group_size {group_size} does not divide the {layer} width {width} of the model; choose {remedy}"
    return None
