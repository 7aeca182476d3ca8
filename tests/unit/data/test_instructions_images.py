"""Instruction data with images: which are read, and which are left out and named."""

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
from PIL import Image

from effllm.data.instructions.pictures import PictureReader
from effllm.data.instructions.prepare import prepare
from effllm.data.instructions.samples import read_samples
from effllm.data.instructions.settings import Instructions
from effllm.data.instructions.sources import open_source
from effllm.errors import UserError
from effllm.results.data import InstructionsSummary
from tests.hub.server import Hub
from tests.unit.data.instruction_files import QUESTION, Prepare, png, prepared, random_picture


def _bomb() -> bytes:
    """A file of 200 megapixels by its header, and of some kilobytes."""
    small = png(Image.new("L", (8, 8)))
    header = b"IHDR" + struct.pack(">II", 20_000, 10_000) + small[24:29]
    return small[:12] + header + struct.pack(">I", zlib.crc32(header)) + small[33:]


def test_images_that_cannot_be_used_are_counted_and_named(tmp_path: Path) -> None:
    good = {f"good{index}.png": png(random_picture(index)) for index in range(12)}
    bad = {
        "cut.png": png(random_picture(90, 200, 200))[:2000],
        "text.png": b"no image",
        "pixel.png": png(Image.new("RGB", (1, 1))),
        "strip.png": png(Image.new("RGB", (900, 3))),
        "bomb.png": _bomb(),
        "deep.png": png(Image.fromarray(np.zeros((4, 4), np.uint16))),
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
    summary = prepared(tmp_path / "data", good | bad, rows)
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
    assert np.array_equal(np.asarray(reader.read(sample.picture)), np.asarray(random_picture(0)))
    assert len(np.unique(np.asarray(reader.blank(sample.picture)))) == 1


def test_chartqa_in_its_published_columns(hub: Hub, prepare: Prepare) -> None:
    charts = [png(random_picture(number)) for number in range(20)]
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
        assert np.array_equal(np.asarray(reader.read(sample.picture)), np.asarray(random_picture(number // 2)))
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
    url = f"data:image/png;base64,{b64encode(png(random_picture(number))).decode()}"
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
    files = {f"{number}.png": png(random_picture(number)) for number in range(8)}
    rows = [*(row(number) for number in range(8)), row(0, marks=2)]
    summary = prepared(tmp_path / "data", files, rows, "images", **columns)
    assert summary.dropped is not None and {key: n for key, n in summary.dropped.items() if n} == {"several": 1}
    out = tmp_path / "data" / "out"
    samples = [sample for split in ("train", "held_out") for sample in read_samples(out, split)]
    assert len(samples) == 8 and {sample.messages[0].content for sample in samples} == {QUESTION}
    reader, found = PictureReader(out), set()
    for sample in samples:
        assert sample.picture is not None
        found.add(np.asarray(reader.read(sample.picture)).tobytes())
    assert found == {np.asarray(random_picture(number)).tobytes() for number in range(8)}


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
        prepared(tmp_path / "data", {"a.png": png(random_picture(0))}, rows)


def _animation(form: str) -> bytes:
    file = io.BytesIO()
    frames = [random_picture(seed).convert("P" if form == "GIF" else "RGB") for seed in (80, 81)]
    frames[0].save(file, form, save_all=True, append_images=frames[1:])
    return file.getvalue()


def _saved(image: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def test_odd_images_are_read_counted_or_named(tmp_path: Path) -> None:
    palette = random_picture(50).convert("P")
    good = {
        "print.png": _saved(random_picture(51).convert("CMYK"), "JPEG"),
        "palette.png": _saved(palette, "PNG", transparency=bytes([0, 128] * 128)),
        "animated.png": _animation("GIF"),
        "moving.png": _animation("WEBP"),
        "seen-through.png": png(random_picture(52).convert("RGBA")),
        "bits.png": _saved(random_picture(53).convert("1"), "TIFF"),
        "lab.png": _saved(random_picture(54), "TIFF", compression="tiff_deflate"),
        **{f"plain{index}.png": png(random_picture(index)) for index in range(6)},
    }
    whole = _saved(random_picture(55, 300, 300), "JPEG")
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
    summary = prepared(tmp_path / "data", good | bad, rows)
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
