"""The model of a `quantize` artifact, loaded where it runs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from effllm.errors import CellFailure
from effllm.models.loading import load_on
from effllm.models.placement import Spread
from effllm.quantization import read_precision
from effllm.quantization.device import require_device
from effllm.quantization.precision import Precision
from effllm.results.quantization import Quantization
from effllm.runtime.artifact import Artifact

if TYPE_CHECKING:
    from effllm.models.loading import CausalLM


@contextmanager
def quantized_on(artifact: Artifact, devices: Sequence[str], spread: Spread) -> "Iterator[tuple[CausalLM, Precision]]":
    """As `load_quantized`, for as long as the block runs; over several devices as `spread` says.

    Of a model of which each device has a part of every layer, `generate` alone may be called.
    """
    if len(devices) == 1 or spread == "layers":
        yield load_quantized(artifact, devices)
        return
    from effllm.models.together import loaded_together

    precision = read_precision(Quantization.read(artifact.directory).precision)
    if precision.is_quantized:
        raise CellFailure("unsupported", "parts of layers are cut from 16-bit weights, and these are packed")
    with loaded_together(artifact.directory / "model", devices) as model:
        yield model, precision


def load_quantized(artifact: Artifact, devices: Sequence[str]) -> "tuple[CausalLM, Precision]":
    """The model on `devices`, its layers spread over them where they are several, and its precision.

    The kernel of quantized layers is chosen for the device that is named here: a model that is moved there later would
    keep the CPU's. `CellFailure`: unsupported where the device cannot run the precision, oom where it does not fit.
    """
    precision = read_precision(Quantization.read(artifact.directory).precision)
    require_device(precision, devices[0])
    return load_on(artifact.directory / "model", devices, **precision.load_options()), precision
