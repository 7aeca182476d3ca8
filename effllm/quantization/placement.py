"""How many GPUs a model needs while it is brought into a precision. Nothing here imports torch."""

from dataclasses import replace
from pathlib import Path

from effllm.models.costs import describe
from effllm.models.placement import Need, need_of, terms
from effllm.quantization.precision import Precision

# Each format is tried once it is written.
TRIED_TOKENS = 8


def running_need(weights_b: float, directory: Path) -> Need:
    """What trying the checkpoint in `directory` needs, whose weights take `weights_b`."""
    return need_of(weights_b, directory, [(1, TRIED_TOKENS, TRIED_TOKENS)])


def quantizing_need(precision: Precision, parameters: float, directory: Path) -> Need:
    """What the model in `directory` needs of the GPUs to be brought into a precision, and tried in it.

    A layer is there in 16 bits beside what it becomes. Of an architecture without cost formulas all parameters are
    taken for those of layers.
    """
    try:
        shape = describe(terms(directory))
        packed, layer_b = shape.num_layers * shape.layer.matmul_parameters, 2.0 * shape.layer.matmul_parameters
    except (AttributeError, KeyError, TypeError, ValueError):
        packed, layer_b = int(parameters), 0.0
    packed = min(packed, int(parameters))
    need = running_need(precision.weight_bytes(packed, int(parameters) - packed), directory)
    return replace(need, workspace_b=need.workspace_b + layer_b)
