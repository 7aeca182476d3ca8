"""The stage `images`: digits of an installed package, folders of files, and files that are no images."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from effllm.data.images.prepare import build
from effllm.data.images.reading import pixels
from effllm.data.images.store import ImageSet
from effllm.errors import UserError
from effllm.runtime.stage import run
from effllm.stages import STAGES

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
    frames = [Image.new("P", (8, 8), color) for color in (1, 2)]
    frames[0].save(odd / "moving.gif", save_all=True, append_images=frames[1:])
    return tmp_path


def test_folders_are_labels_and_what_is_no_image_is_counted_by_name(folder):
    paths = sorted(path for path in folder.rglob("*.*"))
    config = {"source": {"kind": "files", "paths": ["*/*.png"]}, "size": 8, "channels": 3, "held_out_fraction": 0.2}
    directory, summary = prepare(folder, config, paths)
    assert summary["classes"] == ["cats", "dogs"] and summary["seen"] == len(paths) == 38
    assert summary["dropped"] == {"unreadable": 3, "deep": 1, "huge": 0, "duplicate": 1}
    assert [line.rsplit("/", 1)[1] for line in summary["unusable"]] == [
        "cut.png: unreadable",
        "deep.png: deep",
        "empty.jpg: unreadable",
        "text.png: unreadable",
    ]
    assert sum(summary["splits"].values()) == 33
    train = ImageSet(directory, "train")
    assert train.pixels.shape[1:] == (3, 8, 8) and set(train.labels.tolist()) == {0, 1}


def test_scaling_keeps_the_middle(tmp_path):
    picture = np.zeros((40, 100), dtype=np.uint8)
    picture[:, 28:68] = 200
    assert (pixels(Image.fromarray(picture), 10, 1) == 200).all()
    assert pixels(Image.fromarray(picture), 10, 3).shape == (3, 10, 10)
    # Smaller ones grow.
    assert pixels(Image.new("L", (3, 5), 7), 10, 1).tolist() == np.full((1, 10, 10), 7).tolist()


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
            pixels(Image.fromarray(np.ascontiguousarray(picture)), 64, 1).tolist() == np.full((1, 64, 64), 117).tolist()
        )
    assert max(made) <= strip.size


def test_a_source_without_a_usable_image_ends_in_a_sentence(tmp_path):
    (tmp_path / "text.png").write_text("not an image")
    config = {"source": {"kind": "files", "paths": ["*.png"]}, "size": 8, "held_out_fraction": 0.5}
    with pytest.raises(UserError, match=r"no image is left for train of the 1 of 1 files \(1 unreadable; the first is"):
        prepare(tmp_path, config, [tmp_path / "text.png"])
