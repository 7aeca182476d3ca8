"""Fine-tuning with images: how they reach the model, what of it is trained, and whether it looks at them."""

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import AutoConfig, PreTrainedTokenizerBase

from effllm.data.instructions.batches import ImageBatches
from effllm.intervals import ratio_standard_error, sums_by_cluster
from effllm.models.vision_language.flops import ImageFlops
from effllm.models.vision_language.parts import modules_of, part_of, vision_parameters
from effllm.models.vision_language.processing import ImageProcessing
from effllm.results.data import InstructionsSummary
from effllm.runtime.artifact import Artifact

if TYPE_CHECKING:
    from collections.abc import Sequence

    from peft import PeftModel
    from torch import nn
    from transformers import PreTrainedModel

    from effllm.data.instructions.encoding import TrainingSequence
    from effllm.training.answer_loss import AnswerLoss
    from effllm.training.suites import Vision


COPIES = ".modules_to_save."
"""In the names of what peft trains of the base model's own modules, beside which they stand as they were."""


class ImageInputs:
    """The images of instructions, as the base model takes them."""

    def __init__(self, base: Artifact, instructions: Artifact, tokenizer: PreTrainedTokenizerBase):
        self._base, self._instructions, self._tokenizer = base, instructions, tokenizer

    @staticmethod
    def are_in(instructions: Artifact) -> bool:
        """Whether samples have images."""
        return InstructionsSummary.read(instructions.directory).images is not None

    @cached_property
    def marks(self) -> ImageProcessing:
        """How they stand in the text, and what the model is given of them."""
        directory = self._base.directory / "model"
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
        return ImageProcessing(directory, config, self._tokenizer, f"models.{self._base.manifest.id}")

    def batches(self, blank: bool = False) -> ImageBatches:
        """What a batch has of them, or of blank ones in their place."""
        return ImageBatches(self.marks, self._instructions.directory, blank)


def fix_vision(model: "nn.Module", model_type: str, vision: "Vision | None") -> None:
    """Fix the tower and the projector of a model that is trained itself, unless they are to be trained too."""
    for part, _, parameter in vision_parameters(model, model_type):
        parameter.requires_grad_(parameter.requires_grad and vision is not None and vision.trains(part))


def train_vision_beside(model: "PeftModel", model_type: str, vision: "Vision") -> None:
    """Train tower or projector beside an adapter: peft's copies of them, in float32, which it saves and merges too."""
    # What it imports is there where there is an adapter.
    from peft.utils.other import set_additional_trainable_modules

    config = model.active_peft_config
    config.modules_to_save = modules_of(model_type, vision.trained)
    bare: Any = model.base_model.model
    set_additional_trainable_modules(bare, config, {}, model.active_adapter)
    for name, parameter in bare.named_parameters():
        if COPIES in name:
            part = part_of(model_type, name)
            # Qwen's tower holds its projector.
            parameter.requires_grad_(part is not None and vision.trains(part))
            if parameter.requires_grad:
                parameter.data = parameter.data.float()


def image_flops(
    marks: ImageProcessing, model: "PreTrainedModel", vision: "Vision | None", sequences: "Sequence[TrainingSequence]"
) -> np.ndarray:
    """Model FLOPs of training of the images of each sequence, int64."""
    flops = ImageFlops(model, model.config)
    tokens = [sum(int((s.input_ids == marks.token_id).sum()) for s in sequence.samples) for sequence in sequences]
    trained = [] if vision is None else vision.trained
    of_tokens = {count: flops.training(count, trained) for count in set(tokens)}
    return np.array([of_tokens[count] for count in tokens], dtype=np.int64)


def image_figures(after: "AnswerLoss", blank: "AnswerLoss") -> dict[str, Any]:
    """What the images take off the held-out loss, by the same samples with blank ones."""
    ids, nll, tokens = zip(*after.by_sample, strict=True)
    differences = [other - own for (_, other, _), own in zip(blank.by_sample, nll, strict=True)]
    clusters = sums_by_cluster(differences, tokens, [id.partition("#")[0] for id in ids])
    return {
        "held_out_loss_blank": blank.loss,
        "image_gain": blank.loss - after.loss,
        "image_gain_stderr": ratio_standard_error(*clusters),
    }
