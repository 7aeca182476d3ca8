"""Vision-language models of random weights, with the tokenizer and the image processor that they are used with."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, set_seed

from effllm.models.vision_language.architecture import VisionLanguageArchitecture

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

IMAGE_TOKENS = {
    "llava": ("<image>",),
    "qwen2_5_vl": ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
    "internvl": ("<img>", "</img>", "<IMG_CONTEXT>"),
}
"""Tokens by which the families' own tokenizers mark images."""

# Two patches each way are one token.
_MERGE = 2
_GREY = [0.5] * 3


def random_vision_language_model(
    shape: VisionLanguageArchitecture, tokenizer: "PreTrainedTokenizerBase", seed: int
) -> "PreTrainedModel":
    """A float32 model whose weights are drawn with `seed`; adds the family's image tokens to `tokenizer`."""
    tokenizer.add_special_tokens({"additional_special_tokens": list(IMAGE_TOKENS[shape.model_type])})
    config = _config(shape, tokenizer)
    set_seed(seed)
    return AutoModelForImageTextToText.from_config(config, dtype=torch.float32)


def save_image_processor(shape: VisionLanguageArchitecture, directory: Path) -> None:
    """Write preprocessor_config.json: images scaled to the size of the tower and from -1 to 1."""
    # Each module takes a while to import.
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    side, levels = shape.vision.image_size, {"image_mean": _GREY, "image_std": _GREY}
    square = {"height": side, "width": side}
    if shape.model_type == "llava":
        processor: Any = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=square, **levels)
    elif shape.model_type == "internvl":
        processor = GotOcr2ImageProcessorPil(size=square, crop_to_patches=False, **levels)
    else:
        area = {"shortest_edge": side**2, "longest_edge": side**2}
        processor = Qwen2VLImageProcessorPil(size=area, patch_size=shape.vision.patch_size, **levels)
    processor.save_pretrained(directory)


def _config(shape: VisionLanguageArchitecture, tokenizer: "PreTrainedTokenizerBase") -> "PreTrainedConfig":
    vision = shape.vision
    rotary: dict[str, Any] = {"rope_type": "default", "rope_theta": shape.rope_theta}
    if shape.model_type == "qwen2_5_vl":
        # Time, height and width turn a quarter and twice three eighths of a head's pairs.
        pairs = shape.hidden_size // shape.num_attention_heads // 2
        sides = (pairs - pairs // 4) // 2
        rotary["mrope_section"] = [pairs - 2 * sides, sides, sides]
    text = {
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_hidden_layers,
        "num_attention_heads": shape.num_attention_heads,
        "num_key_value_heads": shape.num_key_value_heads,
        "max_position_embeddings": shape.max_position_embeddings,
        "initializer_range": shape.initializer_range,
        "rms_norm_eps": shape.rms_norm_eps,
        "rope_parameters": rotary,
        "tie_word_embeddings": shape.tie_word_embeddings,
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    tower = {
        "hidden_size": vision.hidden_size,
        "intermediate_size": vision.intermediate_size,
        "patch_size": vision.patch_size,
        "initializer_range": vision.initializer_range,
    }
    layers = {"num_hidden_layers": vision.num_hidden_layers, "num_attention_heads": vision.num_attention_heads}
    ids = [tokenizer.convert_tokens_to_ids(token) for token in IMAGE_TOKENS[shape.model_type]]
    shared = {"tie_word_embeddings": shape.tie_word_embeddings}
    if shape.model_type == "llava":
        # CLIP's own factor scales what its layers draw about 0.02.
        factor = {"image_size": vision.image_size, "initializer_factor": vision.initializer_range / 0.02}
        clip = {"model_type": "clip_vision_model"} | tower | layers | factor | {"projection_dim": vision.hidden_size}
        return AutoConfig.for_model(
            "llava",
            text_config={"model_type": "llama"} | text,
            vision_config=clip,
            image_token_index=ids[0],
            image_seq_length=(vision.image_size // vision.patch_size) ** 2,
            vision_feature_layer=-1,
            **shared,
        )
    if shape.model_type == "internvl":
        square = {"image_size": [vision.image_size] * 2, "patch_size": [vision.patch_size] * 2}
        return AutoConfig.for_model(
            "internvl",
            text_config={"model_type": "qwen2"} | text,
            vision_config=tower | layers | square,
            image_token_id=ids[2],
            image_seq_length=(vision.image_size // vision.patch_size // _MERGE) ** 2,
            downsample_ratio=1 / _MERGE,
            **shared,
        )
    window = {"window_size": vision.image_size, "fullatt_block_indexes": [vision.num_hidden_layers - 1]}
    depth = {"depth": vision.num_hidden_layers, "num_heads": vision.num_attention_heads}
    return AutoConfig.for_model(
        "qwen2_5_vl",
        text_config=text,
        vision_config=tower | depth | window | {"out_hidden_size": shape.hidden_size, "spatial_merge_size": _MERGE},
        vision_start_token_id=ids[0],
        vision_end_token_id=ids[1],
        image_token_id=ids[2],
        video_token_id=ids[3],
        **shared,
    )
