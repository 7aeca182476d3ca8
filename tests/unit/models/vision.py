"""Small vision-language models of random weights, on disk with all that they are used with."""

from pathlib import Path

from effllm.data.instructions.settings import Encoding
from effllm.data.instructions.templates import set_template
from effllm.models.vision_language.architecture import VisionLanguageArchitecture
from effllm.models.vision_language.processing import ImageProcessing
from effllm.models.vision_language.random_model import random_vision_language_model, save_image_processor
from tests.unit.data.instruction_tokenizers import byte_level

FAMILIES = ("llava", "qwen2_5_vl", "internvl")
ENCODING = Encoding(template="plain", sequence_length=256)


class Family:
    """A model of random weights, with its tokenizer and image processor on disk."""

    def __init__(self, model_type: str, directory: Path, width: int = 32, layers: int = 1):
        vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        text = {"hidden_size": width, "intermediate_size": width, "num_hidden_layers": layers, "num_attention_heads": 2}
        shape = VisionLanguageArchitecture.model_validate(
            {
                "model_type": model_type,
                **text,
                "num_key_value_heads": 2,
                "max_position_embeddings": 256,
                "initializer_range": 0.2,
                "vision": {**vision, "image_size": 16, "patch_size": 2, "initializer_range": 0.2},
            }
        )
        self.directory, self.tokenizer = directory, byte_level()
        self.model = random_vision_language_model(shape, self.tokenizer, 0).eval()
        self.model.save_pretrained(directory)
        save_image_processor(shape, directory)
        set_template(self.tokenizer, ENCODING, "models.m")
        self.tokenizer.save_pretrained(directory)

    @property
    def processing(self) -> ImageProcessing:
        return ImageProcessing(self.directory, self.model.config, self.tokenizer, "models.m")
