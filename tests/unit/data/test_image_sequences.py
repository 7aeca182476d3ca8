"""How images of instruction data stand in a sequence, and which processors fit a model."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, LlavaProcessor

from effllm.data.instructions.batches import Collate, ImageBatches
from effllm.data.instructions.encoding import IGNORED, TrainingSequence, encode
from effllm.data.instructions.samples import read_samples
from effllm.data.instructions.settings import Encoding
from effllm.data.instructions.templates import set_template
from effllm.errors import UserError
from effllm.models.loading import load_tokenizer
from effllm.models.vision_language.flops import ImageFlops
from effllm.models.vision_language.processing import ImageProcessing
from tests.unit.data.instruction_files import QUESTION, png, prepared, random_picture
from tests.unit.models.vision import ENCODING, FAMILIES, Family


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    return Family(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("instructions") / "data"
    rows = [{"prompt": QUESTION, "response": "one", "image": f"images/{index}.png"} for index in range(10)]
    # Squares and ones of twice the width in turn.
    pictures = [random_picture(index, 16 * (1 + index % 2), 16) for index in range(10)]
    prepared(root, {f"{index}.png": png(picture) for index, picture in enumerate(pictures)}, rows)
    return root / "out"


def _sequences(family: Family, artifact: Path) -> list[TrainingSequence]:
    return encode(read_samples(artifact, "train"), family.tokenizer, ENCODING, marks=family.processing).sequences


def test_images_stand_before_the_question_and_are_not_learned(family: Family, artifact: Path) -> None:
    processing = family.processing
    encoded = encode(read_samples(artifact, "train"), family.tokenizer, ENCODING, marks=processing)
    # 16 pixels at patches of 2, four of which are one token in two of the families. Qwen's processor keeps the shape
    # and the area of 256 pixels, in steps of 4 pixels: 8 by 20 for twice the width.
    square, wide = {"llava": (64, 64), "qwen2_5_vl": (16, 10), "internvl": (16, 16)}[family.model.config.model_type]
    counted = 0
    for sequence in encoded.sequences:
        (sample,) = sequence.samples
        assert sample.picture is not None
        is_image = sample.input_ids == processing.token_id
        assert is_image.sum() == (square if sample.picture.width == 16 else wide)
        assert (np.diff(np.flatnonzero(is_image)) == 1).all()
        counted += is_image.sum()
        assert (sample.labels[is_image] == IGNORED).all()
        learned = sample.labels[sample.labels != IGNORED]
        assert family.tokenizer.decode(learned) == "one<|endoftext|>"
    assert encoded.counts["image_tokens"] == counted
    text = family.tokenizer.decode(sample.input_ids[np.flatnonzero(is_image)[-1] + 1 :])
    assert text.endswith(f"{QUESTION}\n\n### Response:\none<|endoftext|>")
    assert "image" not in family.tokenizer.decode(sample.input_ids[: np.flatnonzero(is_image)[0]]).lower()


@torch.inference_mode()
def test_a_batch_is_what_its_samples_are_alone_and_images_change_the_logits(family: Family, artifact: Path) -> None:
    # Of one length, so that no padding is in the way of the last tokens.
    squares = [one for one in _sequences(family, artifact) if one.samples[0].picture.width == 16]
    sequences = squares[:3]
    items = list(enumerate(sequences))
    true, blank = (
        Collate(0, packing=False, images=ImageBatches(family.processing, artifact, blank)) for blank in (False, True)
    )

    def logits(collate: Collate, rows: list[tuple[int, TrainingSequence]]) -> torch.Tensor:
        batch = collate(rows)
        assert batch.pop("sequence_index").tolist() == [index for index, _ in rows]
        return family.model(**batch).logits

    together = logits(true, items)
    alone = torch.cat([logits(true, [item]) for item in items])
    assert torch.allclose(together, alone, atol=1e-4)
    without = logits(blank, items)
    # The questions are the same, so that rows differ by their images alone.
    assert torch.allclose(without[0], without[1], atol=1e-4)
    assert (together[0, -1] - together[1, -1]).abs().max() > 1e-3
    assert (together[:, -1] - without[:, -1]).abs().max() > 1e-3


def test_text_and_pixels_are_those_of_llavas_own_processor(tmp_path: Path) -> None:
    family = Family("llava", tmp_path)
    family.tokenizer.image_token = "<image>"
    own = LlavaProcessor(
        AutoImageProcessor.from_pretrained(tmp_path, backend="pil"),
        family.tokenizer,
        patch_size=2,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    image, processing = random_picture(3, 40, 30), family.processing
    expected = own(images=[image], text=[f"{processing.marker}{QUESTION}"], return_tensors="pt")
    ids = family.tokenizer(processing.marker + QUESTION)["input_ids"]
    repeated = [[id] * (processing.tokens(*image.size) if id == processing.token_id else 1) for id in ids]
    assert expected["input_ids"][0].tolist() == [id for part in repeated for id in part]
    assert torch.equal(expected["pixel_values"], processing.batch([image])["pixel_values"])


# As LLaVA-1.5's: turns are lists of parts, images before texts, and nothing ends an answer.
PARTS = (
    "{% for turn in messages %}{{ turn['role'].upper() }}: "
    "{% for part in turn['content'] %}{% if part['type'] == 'image' %}<image>\n{% endif %}{% endfor %}"
    "{% for part in turn['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }} {% endif %}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def test_a_template_of_parts_writes_what_llavas_own_processor_writes(artifact: Path, tmp_path: Path) -> None:
    family = Family("llava", tmp_path)
    family.tokenizer.chat_template = PARTS
    asked: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]},
        {"role": "assistant", "content": [{"type": "text", "text": "one"}]},
    ]
    expected = family.tokenizer.apply_chat_template(asked, tokenize=False).rstrip(" ")
    encoding = Encoding(template="tokenizer", sequence_length=256)
    assert set_template(family.tokenizer, encoding, "models.m") == "tokenizer"
    samples = read_samples(artifact, "train")
    sequences = encode(samples, family.tokenizer, encoding, marks=family.processing).sequences
    (sample,) = sequences[0].samples
    ids, image = sample.input_ids, family.processing.token_id
    once = [id for index, id in enumerate(ids) if id != image or ids[index - 1] != image]
    assert family.tokenizer.decode(once) == f"{expected}<|endoftext|>"
    learned = sample.labels[sample.labels != IGNORED]
    assert family.tokenizer.decode(learned) == " one<|endoftext|>"


def test_the_template_of_an_older_processor_is_the_tokenizers(tmp_path: Path) -> None:
    family = Family("llava", tmp_path)
    family.tokenizer.chat_template = None
    family.tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": PARTS}))
    assert load_tokenizer(tmp_path).chat_template == PARTS


OTHER = {"llava": "qwen2_5_vl", "qwen2_5_vl": "llava", "internvl": "llava"}


def test_a_processor_of_another_family_is_refused(family: Family, tmp_path: Path) -> None:
    other = Family(OTHER[family.model.config.model_type], tmp_path)
    with pytest.raises(UserError, match=r"models\.m: its image processor.* (has no|has size) .*; take preprocessor"):
        ImageProcessing(other.directory, family.model.config, family.tokenizer, "models.m")


def test_a_processor_of_another_model_is_refused(family: Family, tmp_path: Path) -> None:
    config = family.directory / "preprocessor_config.json"
    settings = json.loads(config.read_text())
    key = "patch_size" if "patch_size" in settings else "crop_size" if "crop_size" in settings else "size"
    settings[key] = 4 if key == "patch_size" else {"height": 32, "width": 32}
    (tmp_path / config.name).write_text(json.dumps(settings))
    with pytest.raises(UserError, match=r"models\.m: its image processor has .* and its vision tower .*; take"):
        ImageProcessing(tmp_path, family.model.config, family.tokenizer, "models.m")
    (tmp_path / config.name).write_text("{")
    with pytest.raises(UserError, match=r"models\.m: its image processor cannot be loaded"):
        ImageProcessing(tmp_path, family.model.config, family.tokenizer, "models.m")


# What a configuration says that its tokenizer or its tower does not: keys and the sentence.
UNFIT = {
    "llava": (
        "vision_config.model_type",
        "pixtral",
        r"has a pixtral as its vision tower; take a llava with one of clip",
    ),
    "qwen2_5_vl": ("vision_start_token_id", 7, r"config.json has vision_start_token_id 7, which its tokenizer"),
    "internvl": ("image_seq_length", 4, r"has image_seq_length 4, and its vision tower makes 16 tokens"),
}


def test_a_configuration_that_does_not_fit_its_own_model_is_refused(family: Family) -> None:
    config = copy.deepcopy(family.model.config)
    key, value, said = UNFIT[config.model_type]
    *section, name = key.split(".")
    setattr(getattr(config, section[0]) if section else config, name, value)
    with pytest.raises(UserError, match=rf"models\.m: {said}|models\.m: config.json {said}"):
        ImageProcessing(family.directory, config, family.tokenizer, "models.m")


@torch.inference_mode()
@pytest.mark.parametrize(("tower", "strategy"), [("clip", "full"), ("siglip", "full"), ("siglip", "default")])
def test_a_llava_has_as_many_tokens_as_its_tower_has_outputs(tmp_path: Path, tower: str, strategy: str) -> None:
    family = Family("llava", tmp_path)
    config = copy.deepcopy(family.model.config)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 27, "num_attention_heads": 2}
    config.vision_config = AutoConfig.for_model(f"{tower}_vision_model", **sizes, image_size=16, patch_size=2)
    config.vision_feature_select_strategy = strategy
    model = AutoModelForImageTextToText.from_config(config).eval()
    processing = ImageProcessing(tmp_path, config, family.tokenizer, "models.m")
    picture = random_picture(1, 20, 30)
    ids = torch.tensor([[processing.token_id] * processing.tokens(*picture.size)])
    images = processing.batch([picture])
    # Refuses another number.
    assert model(input_ids=ids, **images).logits.shape[1] == ids.shape[1]
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.model.get_image_features(**images)
    assert sum(ImageFlops(model, config).forward(ids.shape[1])) == pytest.approx(counter.get_total_flops(), rel=0.02)
