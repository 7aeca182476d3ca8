"""Ids of precisions that would lie in a table: `int4` of eight bits, `bfloat16` of a quantizer's."""

import re
from collections.abc import Collection, Iterator

from effllm.quantization.precision import Precision

_FLOATS = {
    "bfloat16": ("bfloat16", 16),
    "bf16": ("bfloat16", 16),
    "float16": ("float16", 16),
    "fp16": ("float16", 16),
    "float32": ("float32", 32),
    "fp32": ("float32", 32),
    "float8": ("fp8", 8),
    "fp8": ("fp8", 8),
    "nf4": ("nf4", 4),
}
_NUMBERS = re.compile(rf"(?<![a-z0-9])({'|'.join(_FLOATS)}|int(\d+)|(\d+)[-_]?bits?)(?![a-z0-9])")


def misnamed(id: str, precision: Precision, kinds: Collection[str]) -> str | None:
    """What an id says of a precision that is not so, with the remedy; None where it fits or says nothing.

    A type of 16 bits beside a method or a smaller number is that of the arithmetic.
    """
    kind = precision.plain()["kind"]
    numbers = list(_numbers(id.lower()))
    methods = [word for word in re.split(r"[-_]", id.lower()) if word in kinds and word not in dict(numbers)]
    says_method = bool(methods) or any(bits < 16 for _, (_, bits) in numbers)
    for word, (number, bits) in numbers:
        if bits >= 16 and says_method and precision.is_quantized:
            continue
        fits = (bits == precision.nominal_bits and None in (number, precision.number)) or number == precision.number
        if not fits:
            stored = precision.number or f"{precision.nominal_bits} bits"
            return f"the name says {word}, and kind {kind!r} with these settings stores {stored}; {_REMEDY}"
    for word in methods:
        if word != kind:
            return f"the name says {word}, and kind is {kind!r}; {_REMEDY}"
    return None


_REMEDY = "change the settings, or call it after what it is"


def _numbers(id: str) -> Iterator[tuple[str, tuple[str | None, int]]]:
    """Words of an id that name a number, with the number, None where they state bits alone, and its bits."""
    for match in _NUMBERS.finditer(id):
        word, integer, bits = match.groups()
        if integer:
            yield word, (word, int(integer))
        else:
            yield word, _FLOATS.get(word) or (None, int(bits))
