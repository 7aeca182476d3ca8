"""The bytes that scoring a model needs. Nothing here imports torch."""

from pathlib import Path

from effllm.models.placement import Need, need_of
from effllm.study.evaluation import EvaluationProtocol

# Where neither the protocol nor the model limits an input.
_LONG = 4096


def scoring_need(weights_b: float, directory: Path, protocol: EvaluationProtocol) -> Need:
    """What one request needs with the model in `directory`: where memory runs out, batches are halved down to it."""
    length = protocol.max_length or _LONG
    return need_of(weights_b, directory, [(1, length, length)], scores=True)
