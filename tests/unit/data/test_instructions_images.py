"""Instruction data with images: which are read, which are left out and named, and how they stand in a sequence."""

import copy
import io
import json
import struct
import zlib
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, LlavaProcessor

from effllm.data.instructions.batches import Collate, ImageBatches
from effllm.data.instructions.encoding import IGNORED, TrainingSequence, encode
from effllm.data.instructions.pictures import PictureReader
from effllm.data.instructions.prepare import prepare
from effllm.data.instructions.samples import read_samples
from effllm.data.instructions.settings import Encoding, Instructions
from effllm.data.instructions.sources import open_source
from effllm.data.instructions.templates import set_template
from effllm.errors import UserError
from effllm.models.loading import load_tokenizer
from effllm.models.vision_language.flops import ImageFlops
from effllm.models.vision_language.processing import ImageProcessing
from effllm.results.data import InstructionsSummary
from tests.hub.server import Hub
from tests.unit.data.instruction_files import Prepare
from tests.unit.models.vision import ENCODING, FAMILIES, Family

QUESTION = "How many?"


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _bomb() -> bytes:
    """A file of 200 megapixels by its header, and of some kilobytes."""
    small = _png(Image.new("L", (8, 8)))
    header = b"IHDR" + struct.pack(">II", 20_000, 10_000) + small[24:29]
    return small[:12] + header + struct.pack(">I", zlib.crc32(header)) + small[33:]


def _picture(seed: int, width: int = 12, height: int = 9) -> Image.Image:
    levels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(levels)


def _prepared(
    root: Path, files: dict[str, bytes], rows: list[dict[str, Any]], folder: str | None = None, **columns: str
) -> InstructionsSummary:
    (root / "images").mkdir(parents=True)
    for name, content in files.items():
        (root / "images" / name).write_bytes(content)
    (root / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    config = Instructions.model_validate(
        {
            "source": {
                "kind": "files",
                "paths": [str(root / "rows.jsonl")],
                "images": [str(root / "images" / "*.png")],
                "image_folder": folder and str(root / folder),
                "columns": {"kind": "prompt_response", "image": "image", **columns},
            },
            "held_out_fraction": 0.3,
        }
    )
    given = {f"images[{index}]": path for index, path in enumerate(sorted((root / "images").iterdir()))}
    (root / "out").mkdir()
    source = open_source(config.source, {"files[0]": root / "rows.jsonl", **given}, root / "scratch")
    return prepare(source, config, root / "out")


def test_images_that_cannot_be_used_are_counted_and_named(tmp_path: Path) -> None:
    good = {f"good{index}.png": _png(_picture(index)) for index in range(12)}
    bad = {
        "cut.png": _png(_picture(90, 200, 200))[:2000],
        "text.png": b"no image",
        "pixel.png": _png(Image.new("RGB", (1, 1))),
        "strip.png": _png(Image.new("RGB", (900, 3))),
        "bomb.png": _bomb(),
        "deep.png": _png(Image.fromarray(np.zeros((4, 4), np.uint16))),
    }
    rows = [{"prompt": QUESTION, "response": "one", "image": f"images/{name}"} for name in (*good, *bad)]
    rows += [
        {"prompt": QUESTION, "response": "one", "image": "images/none.png"},
        {"prompt": QUESTION, "response": "one", "image": None},
        # A second question about an image, the same one again, and one by its absolute path.
        {"prompt": "What?", "response": ["two", "2"], "image": "images/good0.png"},
        {"prompt": QUESTION, "response": "one", "image": "images/../images/good1.png"},
        {"prompt": "Why?", "response": "one", "image": str(tmp_path / "data" / "images" / "good2.png")},
        {"prompt": "Where?", "response": "one", "image": f"file://{tmp_path}/data/images/good3.png"},
    ]
    summary = _prepared(tmp_path / "data", good | bad, rows)
    assert summary.dropped is not None and summary.unusable is not None
    counted = {reason: count for reason, count in summary.dropped.items() if count}
    assert counted == {
        "unreadable": 2, "tiny": 1, "narrow": 1, "huge": 1, "deep": 1, "no_image": 2, "duplicate": 1,
    }  # fmt: skip
    assert summary.images == 12
    assert len(summary.unusable) == 8
    assert summary.unusable[0].endswith("images/cut.png): unreadable")
    assert summary.unusable[-2:] == ["row 18 (images/none.png): no_image", "row 19: no_image"]

    out = tmp_path / "data" / "out"
    sides = {split: list(read_samples(out, split)) for split in ("train", "held_out")}
    assert sum(map(len, sides.values())) == 15
    # An image, and so both questions about it, is on one side.
    images = [{sample.picture.offset for sample in samples if sample.picture} for samples in sides.values()]
    assert not images[0] & images[1] and len(images[0] | images[1]) == 12
    twice = [sample for samples in sides.values() for sample in samples if sample.id.endswith("#2")]
    assert {sample.messages[-1].content for sample in twice} == {"two", "one"}
    reader = PictureReader(out)
    sample = next(sample for samples in sides.values() for sample in samples if sample.messages[-1].content == "two")
    assert sample.picture is not None
    assert np.array_equal(np.asarray(reader.read(sample.picture)), np.asarray(_picture(0)))
    assert len(np.unique(np.asarray(reader.blank(sample.picture)))) == 1


def test_chartqa_in_its_published_columns(hub: Hub, prepare: Prepare) -> None:
    charts = [_png(_picture(number)) for number in range(20)]
    rows = [
        {
            "image": {"bytes": charts[number // 2] if number < 40 else charts[0][:300], "path": f"{number}.png"},
            "query": f"How high is bar {number % 2}?",
            "label": [str(number), "about that"],
            "human_or_machine": 1,
        }
        for number in range(41)
    ]
    parts = [io.BytesIO(), io.BytesIO()]
    for part, of_part in zip(parts, (rows[:15], rows[15:]), strict=True):
        pq.write_table(pa.Table.from_pylist(of_part), part)
    files = {f"data/train-0000{index}-of-00002.parquet": part.getvalue() for index, part in enumerate(parts)}
    revision = hub.add("dataset", "HuggingFaceM4/ChartQA", files)
    columns = {"kind": "prompt_response", "prompt": "query", "response": "label", "image": "image"}
    found = prepare({"kind": "hub", "repo": "HuggingFaceM4/ChartQA", "revision": revision, "columns": columns})
    summary = InstructionsSummary.read(found.directory)
    assert (summary.seen, summary.images, summary.unusable) == (41, 20, ["row 40: unreadable"])
    reader = PictureReader(found.directory)
    answers = {}
    for sample in (sample for split in ("train", "held_out") for sample in read_samples(found.directory, split)):
        assert sample.picture is not None
        number = int(sample.messages[-1].content)
        answers[number] = sample.messages[0].content
        assert np.array_equal(np.asarray(reader.read(sample.picture)), np.asarray(_picture(number // 2)))
    assert answers == {number: f"How high is bar {number % 2}?" for number in range(40)}


def _user(*content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(content)}, {"role": "assistant", "content": "one"}]


def _llava(number: int, marks: int = 1) -> dict[str, Any]:
    asked = {"from": "human", "value": "<image>\n" * marks + QUESTION}
    talk = [
        asked,
        {"from": "gpt", "value": "one"},
        {"from": "human", "value": "Sure?"},
        {"from": "gpt", "value": "yes"},
    ]
    return {"id": number, "image": f"{number}.png", "conversations": talk}


def _parts(number: int, marks: int = 1) -> dict[str, Any]:
    image = {"type": "image", "image": f"{number}.png"}
    return {"messages": _user(*[image] * marks, {"type": "text", "text": QUESTION})}


def _beside(number: int, marks: int = 1) -> dict[str, Any]:
    """As TRL has it: parts say where, a column has the images."""
    parts = [{"type": "text", "text": QUESTION, "image": None}, *[{"type": "image", "text": None}] * marks]
    return {"messages": json.dumps(_user(*parts)), "images": [f"{number}.png"] * marks}


def _url(number: int, marks: int = 1) -> dict[str, Any]:
    url = f"data:image/png;base64,{b64encode(_png(_picture(number))).decode()}"
    image = {"type": "image_url", "image_url": {"url": url}}
    talk = _user(*[image] * marks, {"type": "text", "text": QUESTION})
    return {"prompt": talk[:1], "completion": talk[1:]}


def _chart(number: int, marks: int = 1) -> dict[str, Any]:
    return {"imgname": [f"{number}.png"] * marks, "query": QUESTION, "label": "one"}


LAYOUTS: dict[str, tuple[Callable[..., dict[str, Any]], dict[str, str]]] = {
    "LLaVA's conversations": (_llava, {"kind": "chat", "messages": "conversations"}),
    "messages whose parts have the images": (_parts, {"kind": "chat", "image": "messages"}),
    "messages with images in a column": (_beside, {"kind": "chat", "image": "images"}),
    "parts with their files": (_url, {"prompt": "prompt", "response": "completion", "image": "prompt"}),
    "ChartQA's files": (_chart, {"prompt": "query", "response": "label", "image": "imgname"}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_images_are_read_in_the_layouts_in_which_they_are_published(tmp_path: Path, layout: str) -> None:
    row, columns = LAYOUTS[layout]
    files = {f"{number}.png": _png(_picture(number)) for number in range(8)}
    rows = [*(row(number) for number in range(8)), row(0, marks=2)]
    summary = _prepared(tmp_path / "data", files, rows, "images", **columns)
    assert summary.dropped is not None and {key: n for key, n in summary.dropped.items() if n} == {"several": 1}
    out = tmp_path / "data" / "out"
    samples = [sample for split in ("train", "held_out") for sample in read_samples(out, split)]
    assert len(samples) == 8 and {sample.messages[0].content for sample in samples} == {QUESTION}
    reader, found = PictureReader(out), set()
    for sample in samples:
        assert sample.picture is not None
        found.add(np.asarray(reader.read(sample.picture)).tobytes())
    assert found == {np.asarray(_picture(number)).tobytes() for number in range(8)}


def test_parts_that_are_images_are_text_to_nobody(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(f"{json.dumps(_parts(number))}\n" for number in range(3)))
    source = {"kind": "files", "paths": [str(file)], "columns": {"kind": "chat"}}
    config = Instructions.model_validate({"source": source, "held_out_fraction": 0.3})
    said = r"\(not_text 3\); the first has .messages. .*: add image: .messages. to source.columns"
    with pytest.raises(UserError, match=said):
        prepare(open_source(config.source, {"files[0]": file}, tmp_path), config, tmp_path)


def test_images_that_nobody_listed_are_none(tmp_path: Path) -> None:
    rows = [{"prompt": QUESTION, "response": "one", "image": "elsewhere.png"}] * 3
    said = (
        r"none of the 3 rows .* \(no_image 3\); the first is row 0 \(elsewhere.png\): no_image: correct source.images"
    )
    with pytest.raises(UserError, match=said):
        _prepared(tmp_path / "data", {"a.png": _png(_picture(0))}, rows)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    return Family(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("instructions") / "data"
    rows = [{"prompt": QUESTION, "response": "one", "image": f"images/{index}.png"} for index in range(10)]
    # Squares and ones of twice the width in turn.
    pictures = [_picture(index, 16 * (1 + index % 2), 16) for index in range(10)]
    _prepared(root, {f"{index}.png": _png(picture) for index, picture in enumerate(pictures)}, rows)
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
    image, processing = _picture(3, 40, 30), family.processing
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


def _animation(form: str) -> bytes:
    file = io.BytesIO()
    frames = [_picture(seed).convert("P" if form == "GIF" else "RGB") for seed in (80, 81)]
    frames[0].save(file, form, save_all=True, append_images=frames[1:])
    return file.getvalue()


def _saved(image: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def test_odd_images_are_read_counted_or_named(tmp_path: Path) -> None:
    palette = _picture(50).convert("P")
    good = {
        "print.png": _saved(_picture(51).convert("CMYK"), "JPEG"),
        "palette.png": _saved(palette, "PNG", transparency=bytes([0, 128] * 128)),
        "animated.png": _animation("GIF"),
        "moving.png": _animation("WEBP"),
        "seen-through.png": _png(_picture(52).convert("RGBA")),
        "bits.png": _saved(_picture(53).convert("1"), "TIFF"),
        "lab.png": _saved(_picture(54), "TIFF", compression="tiff_deflate"),
        **{f"plain{index}.png": _png(_picture(index)) for index in range(6)},
    }
    whole = _saved(_picture(55, 300, 300), "JPEG")
    bad = {
        "empty.png": b"",
        "half.png": whole[: len(whole) // 2],
        "header.png": whole[:30],
        "deep.png": _saved(Image.fromarray(np.zeros((4, 4), np.uint16)), "TIFF"),
        "float.png": _saved(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"),
        "svg.png": b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
    }
    rows: list[dict[str, Any]] = [
        {"prompt": QUESTION, "response": "one", "image": f"images/{name}"} for name in (*good, *bad)
    ]
    first = rows[-len(bad) - 1]["image"]
    rows += [
        {"prompt": "One of a list?", "response": "one", "image": [first]},
        {"prompt": QUESTION, "response": "one", "image": [first, first]},
        {"prompt": QUESTION, "response": "one", "image": []},
        {"prompt": QUESTION, "response": "one"},
        {"prompt": QUESTION, "response": "one", "image": 7},
        {"prompt": QUESTION, "response": "one", "image": "images"},
        {"prompt": QUESTION, "response": None, "image": first},
        {"prompt": "No answer?", "response": "", "image": first},
        {"prompt": "", "response": "one", "image": first},
        {"prompt": "No answer in a list?", "response": [], "image": first},
    ]
    summary = _prepared(tmp_path / "data", good | bad, rows)
    assert summary.dropped is not None and summary.unusable is not None
    counted = {reason: count for reason, count in summary.dropped.items() if count}
    assert counted == {
        "unreadable": 4, "deep": 2, "several": 1, "no_image": 4, "not_text": 2, "empty_message": 2,
    }  # fmt: skip
    assert summary.images == len(good)
    assert summary.odd == {"animated": 2, "palette": 2, "print": 1, "transparent": 2}
    assert [line.rpartition(": ")[2] for line in summary.unusable] == [
        "unreadable", "unreadable", "unreadable", "deep", "deep", "unreadable", "several", *["no_image"] * 4,
    ]  # fmt: skip


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
    picture = _picture(1, 20, 30)
    ids = torch.tensor([[processing.token_id] * processing.tokens(*picture.size)])
    images = processing.batch([picture])
    # Refuses another number.
    assert model(input_ids=ids, **images).logits.shape[1] == ids.shape[1]
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.model.get_image_features(**images)
    assert sum(ImageFlops(model, config).forward(ids.shape[1])) == pytest.approx(counter.get_total_flops(), rel=0.02)
