"""The model of a `quantize` artifact, loaded where it runs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from effllm.models.loading import load_on
from effllm.quantization import read_precision
from effllm.quantization.device import require_device
from effllm.quantization.precision import Precision
from effllm.results.quantization import Quantization
from effllm.runtime.artifact import Artifact

if TYPE_CHECKING:
    from effllm.models.loading import CausalLM


def load_quantized(artifact: Artifact, devices: Sequence[str]) -> "tuple[CausalLM, Precision]":
    """The model on `devices`, its layers spread over them where they are several, and its precision.

    The kernel of quantized layers is chosen for the device that is named here: a model that is moved there later would
    keep the CPU's. `CellFailure`: unsupported where the device cannot run the precision, oom where it does not fit.
    """
    precision = read_precision(Quantization.read(artifact.directory).precision)
    require_device(precision, devices[0])
    return load_on(artifact.directory / "model", devices, **precision.load_options()), precision
