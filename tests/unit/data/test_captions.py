"""The stage `captions`: digits, images and clips with captions, buckets of shapes, and files that make no sample."""

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from effllm.data.captions.prepare import build
from effllm.data.captions.settings import Captions
from effllm.data.captions.store import CaptionedSet
from effllm.errors import UserError
from effllm.runtime.stage import run
from effllm.stages import STAGES

FILES = {"source": {"kind": "files", "paths": ["*"]}, "shapes": ["8x8", "16x8"], "held_out_fraction": 0.5}


def prepare(root: Path, config: dict[str, Any], files: list[Path] = ()) -> tuple[Path, dict[str, Any]]:
    """The artifact's directory and its summary."""
    plain = Captions.model_validate(config).plain()
    spec = {"stage": "captions", "version": STAGES["captions"].version, "config": plain}
    inputs = {"files": list(files)} if files else {}
    made = run(STAGES["captions"], build, spec=spec, inputs=inputs, output=root / "results" / "captions" / "some")
    return made.directory, json.loads((made.directory / "captions.json").read_text())


def samples(directory: Path) -> dict[str, tuple[str, np.ndarray]]:
    """Captions and pixels by name."""
    sets = [CaptionedSet(directory, split) for split in ("train", "held_out")]
    return {sample.name: (sample.caption, s.pixels(i)) for s in sets for i, sample in enumerate(s.samples)}


def picture(path: Path, level: int, width: int = 12, height: int = 12) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    Image.new("RGB", (width, height), (level, 0, 255 - level)).save(path)
    return path


def captioned(root: Path, count: int = 8) -> None:
    """So many images with captions that neither side of the split is empty."""
    for number in range(count):
        wide = number % 2
        picture(root / f"{number}.png", 20 * number, 24 if wide else 12, 12)
        (root / f"{number}.txt").write_text(f" a picture\nof level {number} ")


def test_digits_say_which_they_are_and_move_in_clips(tmp_path):
    config = {"source": {"kind": "digits"}, "shapes": ["8x8"], "held_out_fraction": 0.1, "frames": 3, "every": 2}
    directory, summary = prepare(tmp_path, config)
    assert summary["splits"]["train"] + summary["splits"]["held_out"] + summary["dropped"]["duplicate"] == 1797
    caption, clip = samples(directory)["digit 7"]
    assert caption == "the digit seven moves to the right" and clip.shape == (3, 3, 8, 8)
    assert (clip[1] == np.roll(clip[0], 2, axis=-1)).all() and (clip[1] != clip[0]).any()


def test_images_take_the_shape_of_the_nearest_ratio_and_what_makes_no_sample_is_counted_by_name(tmp_path):
    folder = tmp_path / "art"
    folder.mkdir()
    captioned(folder)
    (folder / "alone.txt").write_text("a caption without its image")
    picture(folder / "mute.png", 3)
    picture(folder / "blank.png", 5)
    (folder / "blank.txt").write_text(" \n")
    picture(folder / "latin.png", 6)
    (folder / "latin.txt").write_bytes("é".encode("latin-1"))
    (folder / "cut.png").write_bytes((folder / "1.png").read_bytes()[:50])
    (folder / "cut.txt").write_text("cut short")
    # The header of 200 megapixels, and nothing behind it.
    whole, header = (folder / "0.png").read_bytes(), b"IHDR" + struct.pack(">IIBBBBB", 20_000, 10_000, 8, 2, 0, 0, 0)
    (folder / "bomb.png").write_bytes(whole[:12] + header + struct.pack(">I", zlib.crc32(header)) + whole[33:41])
    (folder / "bomb.txt").write_text("huge")
    picture(folder / "dot.png", 9, 1, 1)
    (folder / "dot.txt").write_text("one pixel")
    (folder / "film.mp4").write_bytes(b"x")
    (folder / "film.txt").write_text("a film")
    (folder / "notes.md").write_text("x")
    directory, summary = prepare(tmp_path, FILES, sorted(folder.iterdir()))
    expected = {"without_image": 1, "without_caption": 1, "empty_caption": 1, "unreadable_caption": 1, "unreadable": 1}
    expected |= {"huge": 1, "video": 1, "other": 1}
    assert {reason: count for reason, count in summary["dropped"].items() if count} == expected
    assert f"{folder / 'bomb.txt'}: huge" in summary["unusable"]
    assert f"{folder / 'alone.txt'}: without_image" in summary["unusable"]
    assert summary["shapes"] == {"8x8": 5, "16x8": 4} and summary["seen"] == 9 + len(expected)
    found = samples(directory)
    caption, pixels = found[str(folder / "3.txt")]
    assert caption == "a picture of level 3" and pixels.shape == (1, 3, 8, 16)
    assert (pixels[0, 0] == 60).all() and (pixels[0, 2] == 195).all()


def test_clips_are_folders_of_frames_or_animations(tmp_path):
    for clip in range(6):
        for frame in range(3):
            picture(tmp_path / "clips" / f"{clip}" / f"{frame}.png", 30 * clip + frame)
        (tmp_path / "clips" / f"{clip}.txt").write_text(f"clip {clip}")
    frames = [Image.new("RGB", (8, 8), (200, shade, 0)) for shade in (0, 90, 180)]
    frames[0].save(tmp_path / "clips" / "moving.gif", save_all=True, append_images=frames[1:])
    (tmp_path / "clips" / "moving.txt").write_text("moving")
    picture(tmp_path / "clips" / "still.png", 1)
    (tmp_path / "clips" / "still.txt").write_text("a still")
    (tmp_path / "clips" / "empty.txt").write_text("a clip without frames")
    files = sorted(path for path in (tmp_path / "clips").rglob("*") if path.is_file())
    directory, summary = prepare(tmp_path, FILES | {"frames": 2, "every": 2, "shapes": ["8x8"]}, files)
    assert {reason: count for reason, count in summary["dropped"].items() if count} == {"short": 1, "without_frames": 1}
    found = samples(directory)
    caption, pixels = found[str(tmp_path / "clips" / "4.txt")]
    assert caption == "clip 4" and [int(frame[0, 0, 0]) for frame in pixels] == [120, 122]
    _, pixels = found[str(tmp_path / "clips" / "moving.txt")]
    assert np.abs(pixels[:, 1, 0, 0].astype(int) - [0, 180]).max() <= 8


def test_nothing_left_is_a_sentence_that_says_what_to_do(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"x")
    with pytest.raises(UserError, match=r"no sample is left for train .*1 video.*split videos into folders of frames"):
        prepare(tmp_path, FILES, [tmp_path / "a.mp4"])
    with pytest.raises(ValidationError, match="100x900 is a strip"):
        Captions.model_validate(FILES | {"shapes": ["100x900"]})
