"""Model FLOPs of text and images against the products that torch counts in a step."""

from typing import Any

import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from effllm.models.vision_language.architecture import VisionLanguageArchitecture
from effllm.models.vision_language.flops import ImageFlops, TextView
from effllm.models.vision_language.processing import ImageProcessing
from effllm.models.vision_language.random_model import random_vision_language_model, save_image_processor
from effllm.models.vision_language.text import text_shape
from effllm.training.images import fix_vision, train_vision_beside
from effllm.training.methods import AnyMethod
from effllm.training.suites import Vision
from tests.unit.data.instruction_tokenizers import byte_level

LORA = {"kind": "lora", "rank": 8, "alpha": 16}
CASES: dict[str, tuple[str, dict[str, Any], Vision | None]] = {
    "llava": ("llava", LORA, None),
    "qwen2_5_vl": ("qwen2_5_vl", LORA, None),
    "internvl": ("internvl", LORA, None),
    "full beside fixed eyes": ("internvl", {"kind": "full"}, None),
    "projector beside an adapter": ("llava", LORA, Vision(projector="trained")),
    "tower beside an adapter": ("qwen2_5_vl", LORA, Vision(tower="trained")),
    "projector trained": ("llava", {"kind": "full"}, Vision(projector="trained")),
    "all trained": ("llava", {"kind": "full"}, Vision(tower="trained", projector="trained")),
    "the first layers fixed": ("qwen2_5_vl", {"kind": "freeze", "frozen_layers": 2}, None),
}


@pytest.mark.parametrize("case", CASES)
def test_flops_of_a_step_are_those_that_torch_counts(case: str, tmp_path: Any) -> None:
    family, method, vision = CASES[case]
    tower = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}
    shape = VisionLanguageArchitecture.model_validate(
        {
            "model_type": family,
            **tower | {"num_hidden_layers": 6},
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
            "vision": {**tower, "image_size": 32, "patch_size": 4},
        }
    )
    tokenizer = byte_level()
    model = random_vision_language_model(shape, tokenizer, 0)
    save_image_processor(shape, tmp_path)
    processing = ImageProcessing(tmp_path, model.config, tokenizer, "models.m")
    settings = TypeAdapter(AnyMethod).validate_python(method)
    prepared = settings.apply(model, "methods.x").model.train()
    if settings.trains_whole_model:
        fix_vision(prepared, family, vision)
    elif vision is not None:
        train_vision_beside(prepared, family, vision)
    count = processing.tokens(32, 32)
    ids = torch.tensor([[*range(1, 9), *[processing.token_id] * count, *range(9, 25)]])
    batch = processing.batch([Image.new("RGB", (32, 32))]) | processing.of_tokens(ids)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        prepared(input_ids=ids, labels=ids, attention_mask=torch.ones_like(ids), **batch).loss.backward()
    trained = [] if vision is None else vision.trained
    stated = settings.sequence_flops(TextView(prepared, text_shape(model.config)), ids.shape[1])
    stated += ImageFlops(model, model.config).training(count, trained)
    assert stated == pytest.approx(counter.get_total_flops(), rel=0.02)
