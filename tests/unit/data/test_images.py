"""The stage `images`: digits, folders of files, datasets of the hub, and files that are no images."""

import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import ExifTags, Image

from effllm.data.images.prepare import build
from effllm.data.images.reading import pixels
from effllm.data.images.settings import Images
from effllm.data.images.store import ImageSet
from effllm.errors import UserError
from effllm.runtime.stage import run
from effllm.stages import STAGES
from tests.hub.server import Hub

DIGITS = {"source": {"kind": "digits"}, "size": 8, "channels": 1, "held_out_fraction": 0.2}


def prepare(root: Path, config: dict[str, Any], files: list[Path] = ()) -> tuple[Path, dict[str, Any]]:
    """The artifact's directory and its summary."""
    spec = {"stage": "images", "version": STAGES["images"].version, "config": config}
    inputs = {"files": list(files)} if files else {}
    made = run(STAGES["images"], build, spec=spec, inputs=inputs, output=root / "results" / "images" / "some")
    return made.directory, json.loads((made.directory / "images.json").read_text())


def test_digits_are_the_packages_own_and_split_by_their_content(tmp_path):
    from sklearn.datasets import load_digits

    directory, summary = prepare(tmp_path, DIGITS)
    train, held_out = (ImageSet(directory, split) for split in ("train", "held_out"))
    assert summary["seen"] == 1797 == len(train) + len(held_out) + summary["dropped"]["duplicate"]
    assert len(held_out) / 1797 == pytest.approx(0.2, abs=0.03)
    assert summary["classes"] == list("0123456789")
    data = load_digits()
    known = {
        (np.round(image * 255 / 16).astype(np.uint8).tobytes(), int(label))
        for image, label in zip(data.images, data.target, strict=True)
    }
    for images in (train, held_out):
        assert {(row.tobytes(), int(label)) for row, label in zip(images.pixels, images.labels, strict=True)} <= known
    assert not {row.tobytes() for row in train.pixels} & {row.tobytes() for row in held_out.pixels}
    image, _ = train[0]
    assert image.dtype == np.float32
    np.testing.assert_allclose((image + 1) * 127.5, train.pixels[0], atol=1e-4)


def header_of(width: int, height: int) -> bytes:
    """A PNG that ends before its first pixel."""
    buffer = io.BytesIO()
    Image.new("L", (1, 1)).save(buffer, "PNG")
    head = b"IHDR" + struct.pack(">II", width, height) + b"\x08\x00\x00\x00\x00"
    data = buffer.getvalue()
    return data[:12] + head + struct.pack(">I", zlib.crc32(head)) + data[33:41]


def deep_colours() -> bytes:
    """A PNG of 4 x 4 pixels in three colours of 16 bits."""
    parts = b"\x89PNG\r\n\x1a\n"
    rows = zlib.compress((b"\0" + bytes(range(24))) * 4)
    for kind, data in (
        (b"IHDR", struct.pack(">II", 4, 4) + b"\x10\x02\x00\x00\x00"),
        (b"IDAT", rows),
        (b"IEND", b""),
    ):
        parts += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return parts


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Thirty pictures of two kinds, and what people have among theirs."""
    draw = np.random.default_rng(0)
    for kind in ("cats", "dogs"):
        (tmp_path / kind).mkdir()
        for index in range(15):
            picture = draw.integers(0, 256, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(picture).save(tmp_path / kind / f"{index:02}.png")
    odd = tmp_path / "cats"
    (odd / "cut.png").write_bytes((odd / "00.png").read_bytes()[:300])
    (odd / "empty.jpg").touch()
    (odd / "text.png").write_text("not an image")
    Image.fromarray(np.zeros((9, 9), dtype=np.uint16)).save(odd / "deep.png")
    Image.open(odd / "00.png").save(tmp_path / "dogs" / "again.png")
    Image.new("CMYK", (30, 10), (0, 200, 100, 0)).save(odd / "print.jpg")
    Image.new("RGBA", (8, 8), (9, 8, 7, 0)).save(odd / "clear.png")
    colours = Image.new("P", (9, 9), 3)
    colours.putpalette([7, 80, 160] * 4)
    colours.save(odd / "colours.png", transparency=3)
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    Image.fromarray(np.arange(240, dtype=np.uint8).reshape(10, 24)).save(odd / "turned.jpg", exif=turned)
    Image.new("L", (1, 1), 5).save(odd / "dot.png")
    # 200 million pixels that are not there: whoever decoded them would find the file damaged.
    (odd / "bomb.png").write_bytes(header_of(20_000, 10_000))
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    frames[0].save(odd / "moving.gif", save_all=True, append_images=frames[1:])
    # One whose second frame is not all there, and colours of 16 bits, which Pillow opens as if they were of 8.
    moving = (odd / "moving.gif").read_bytes()
    (odd / "cut.gif").write_bytes(moving[: moving.rindex(b",") + 10])
    (odd / "deep-colours.png").write_bytes(deep_colours())
    return tmp_path


def test_folders_are_labels_and_what_is_no_image_is_counted_by_name(folder):
    paths = sorted(path for path in folder.rglob("*.*"))
    config = {"source": {"kind": "files", "paths": ["*/*.png"]}, "size": 8, "channels": 3, "held_out_fraction": 0.2}
    directory, summary = prepare(folder, config, paths)
    assert summary["classes"] == ["cats", "dogs"] and summary["seen"] == len(paths) == 44
    assert summary["dropped"] == {"unreadable": 4, "deep": 2, "huge": 1, "duplicate": 1}
    assert summary["odd"] == {"turned": 1, "animated": 1, "transparent": 2, "palette": 2, "print": 1, "enlarged": 1}
    assert [line.rsplit("/", 1)[1] for line in summary["unusable"]] == [
        "bomb.png: huge",
        "cut.gif: unreadable",
        "cut.png: unreadable",
        "deep-colours.png: deep",
        "deep.png: deep",
        "empty.jpg: unreadable",
        "text.png: unreadable",
    ]
    assert sum(summary["splits"].values()) == 36
    train = ImageSet(directory, "train")
    assert train.pixels.shape[1:] == (3, 8, 8) and set(train.labels.tolist()) == {0, 1}


def test_scaling_keeps_the_middle(tmp_path):
    picture = np.zeros((40, 100), dtype=np.uint8)
    picture[:, 28:68] = 200
    assert (pixels(Image.fromarray(picture), 10, 1)[0] == 200).all()
    assert pixels(Image.fromarray(picture), 10, 3)[0].shape == (3, 10, 10)
    # Smaller ones grow.
    assert pixels(Image.new("L", (3, 5), 7), 10, 1)[0].tolist() == np.full((1, 10, 10), 7).tolist()


def test_a_narrow_strip_is_not_scaled_whole(monkeypatch):
    strip = (np.arange(40_000) // 170).astype(np.uint8)[None]
    made = []
    resize = Image.Image.resize

    def noted(image: Image.Image, size: tuple[int, int], *arguments: Any, **more: Any) -> Image.Image:
        made.append(size[0] * size[1])
        return resize(image, size, *arguments, **more)

    monkeypatch.setattr(Image.Image, "resize", noted)
    for picture in (strip, strip.T):
        assert (
            pixels(Image.fromarray(np.ascontiguousarray(picture)), 64, 1)[0].tolist()
            == np.full((1, 64, 64), 117).tolist()
        )
    assert max(made) <= strip.size


def test_a_source_without_a_usable_image_ends_in_a_sentence(tmp_path):
    (tmp_path / "text.png").write_text("not an image")
    config = {"source": {"kind": "files", "paths": ["*.png"]}, "size": 8, "held_out_fraction": 0.5}
    with pytest.raises(UserError, match=r"no image is left for train of the 1 of 1 files \(1 unreadable; the first is"):
        prepare(tmp_path, config, [tmp_path / "text.png"])


def test_random_crops_are_places_that_the_pixels_themselves_draw():
    pictures = [np.random.default_rng(seed).integers(0, 256, (40, 80), dtype=np.uint8) for seed in range(8)]
    scaled = [Image.fromarray(picture).resize((40, 20), Image.Resampling.BOX) for picture in pictures]
    places = set()
    for picture, small in zip(pictures, scaled, strict=True):
        crop = pixels(Image.fromarray(picture), 20, 1, "random")[0][0]
        windows = [np.asarray(small)[:, left : left + 20] for left in range(21)]
        places.add(next(left for left, window in enumerate(windows) if (window == crop).all()))
        assert (pixels(Image.fromarray(picture), 20, 1, "random")[0] == crop).all()
    assert len(places) > 3
    config = Images.model_validate(DIGITS)
    assert "crop" not in config.plain() and config.model_copy(update={"crop": "random"}).plain()["crop"] == "random"


def rows(count: int, **more: Any) -> list[dict[str, Any]]:
    """Pictures as a dataset has them, each of its number's colour."""
    found = []
    for number in range(count):
        buffer = io.BytesIO()
        Image.new("RGB", (6, 9), (number, 0, 255 - number)).save(buffer, "PNG")
        found.append({"image": {"bytes": buffer.getvalue(), "path": None}, "label": number % 2} | more)
    return found


def test_a_dataset_of_the_hub_is_read_a_file_at_a_time_with_its_names_of_labels(hub: Hub, tmp_path, monkeypatch):
    monkeypatch.setattr("effllm.hub.dataset.KEPT_BYTES", 0)
    damaged = [{"image": {"bytes": b"no image", "path": "x.jpg"}, "label": 1}, rows(1)[0] | {"label": -1}]
    parts = {"data/train-0.parquet": rows(100)[:60], "data/train-1.parquet": [*rows(100)[60:], *damaged]}
    readme = """---
dataset_info:
  features:
  - {name: image, dtype: image}
  - name: label
    dtype: {class_label: {names: {'0': tench, '1': goldfish, '2': shark}}}
configs:
- {config_name: default, data_files: [{split: train, path: data/train-*}]}
---
"""
    files = {name: parquet(part) for name, part in parts.items()} | {"README.md": readme.encode()}
    revision = hub.add("dataset", "owner/fish", files)
    source = {"kind": "hub", "repo": "owner/fish", "revision": revision}
    directory, summary = prepare(tmp_path, {"source": source, "size": 6, "held_out_fraction": 0.2})
    assert summary["classes"] == ["tench", "goldfish", "shark"] and summary["seen"] == 102
    assert summary["dropped"] == {"unreadable": 1, "deep": 0, "huge": 0, "duplicate": 0, "unlabelled": 1}
    assert summary["unusable"] == ["row 100 (x.jpg): unreadable", "row 101: unlabelled"]
    found = {}
    for split in ("train", "held_out"):
        images = ImageSet(directory, split)
        found |= {int(image[0, 0, 0]): int(label) for image, label in zip(images.pixels, images.labels, strict=True)}
    assert found == {number: number % 2 for number in range(100)}


def test_labels_may_be_texts_or_missing_and_columns_have_other_names(hub: Hub, tmp_path):
    named = [{"picture": row["image"]["bytes"], "kind": "ba"[row["label"]]} for row in rows(40)]
    revision = hub.add("dataset", "owner/letters", {"train.parquet": parquet(named)})
    for label, classes in (("kind", ["b", "a"]), (None, [])):
        source = {"kind": "hub", "repo": "owner/letters", "revision": revision}
        source["columns"] = {"image": "picture", "label": label}
        _, summary = prepare(tmp_path / str(label), {"source": source, "size": 6, "held_out_fraction": 0.3})
        assert summary["classes"] == classes and sum(summary["splits"].values()) == 40
    source["columns"] = {"image": "image"}
    with pytest.raises(UserError, match="no column 'image'; its columns are picture, kind: name one in columns"):
        prepare(tmp_path / "wrong", {"source": source, "size": 6, "held_out_fraction": 0.3})


def parquet(found: list[dict[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(found), buffer)
    return buffer.getvalue()
