"""What decides a profile beside the model, and the bytes that its workloads need. Nothing here imports torch."""

from pathlib import Path

from pydantic import Field

from effllm.fields import PositiveInt
from effllm.models.placement import Need, Spread, need_of
from effllm.study.evaluation import InferenceProtocol


class ProfileConfig(InferenceProtocol):
    """The stage's slice of the study: the protocol, and the GPUs that the study asks for."""

    devices: PositiveInt | None = Field(default=None, description="GPUs of one host; null: as many as it needs.")

    spread: Spread = Field(default="layers", description="How the model is on several of them.")

    def protocol(self) -> InferenceProtocol:
        """How the workloads are measured."""
        return InferenceProtocol(**{key: getattr(self, key) for key in InferenceProtocol.model_fields})


def profile_need(weights_b: float, directory: Path, protocol: InferenceProtocol) -> Need:
    """What the workloads need of the GPUs with the model in `directory`."""
    return need_of(
        weights_b,
        directory,
        [
            (w.batch_size, w.prompt_tokens_at_most, w.prompt_tokens_at_most + w.new_tokens)
            for w in protocol.workloads.values()
        ],
    )
