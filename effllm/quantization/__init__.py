"""Precisions by the `kind` that they have in a study.

To add one: a file with a subclass of `Precision`, like `cast.py`, and a line here. Nothing here imports torch.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from effllm.fields import FormOf
from effllm.quantization.awq import AwqPrecision
from effllm.quantization.bnb import BnbPrecision
from effllm.quantization.cast import CastPrecision
from effllm.quantization.fp8 import Fp8Precision
from effllm.quantization.gptq import GptqPrecision
from effllm.quantization.int8 import Int8Precision
from effllm.quantization.names import misnamed
from effllm.quantization.precision import Precision

PRECISIONS: dict[str, type[Precision]] = {
    "cast": CastPrecision,
    "gptq": GptqPrecision,
    "awq": AwqPrecision,
    "bnb": BnbPrecision,
    "int8": Int8Precision,
    "fp8": Fp8Precision,
}

AnyPrecision = Annotated[Precision, FormOf(PRECISIONS)]
"""The type of a precision in a configuration."""


def setting_columns() -> list[str]:
    """The settings of all precisions that Table 9 prints, in its order."""
    return list(dict.fromkeys(column for precision in PRECISIONS.values() for column in precision.columns))


def check_name(where: str, id: str, precision: Precision) -> None:
    """Raise ValueError with the key `where` for a precision that is not what its id says, which tables print."""
    if reason := misnamed(id, precision, PRECISIONS):
        raise ValueError(f"{where}: {reason}")


def read_precision(settings: Mapping[str, Any]) -> Precision:
    """A precision from its plain settings, as specs hold them; KeyError or ValueError where they are not one's."""
    return PRECISIONS[settings["kind"]].model_validate(dict(settings))
