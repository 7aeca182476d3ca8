"""The stage `captions`: digits, images, clips and videos, the hub, buckets of shapes, and files that make no sample."""

import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants
from PIL import Image
from pydantic import ValidationError

from effllm.data.captions.prepare import build
from effllm.data.captions.settings import Captions
from effllm.data.captions.store import CaptionedSet
from effllm.errors import UserError
from effllm.runtime.stage import run
from effllm.stages import STAGES
from tests.hub.server import Hub

FILES = {"source": {"kind": "files", "paths": ["*"]}, "shapes": ["8x8", "16x8"], "held_out_fraction": 0.5}


DESCRIPTION = b"""---
dataset_info:
  features:
  - {name: painting, dtype: image}
  - name: artist
    dtype:
      class_label:
        names: {"0": sargent, "1": monet, "2": manet}
  - {name: title, dtype: string}
  - {name: year, dtype: int64}
  splits: [{name: train, num_examples: 24}]
---
"""


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
    # A picture and its thumbnail.
    picture(folder / "two.png", 10)
    picture(folder / "two.jpg", 11)
    (folder / "two.txt").write_text("which of them?")
    (folder / "film.mp4").write_bytes(b"x")
    (folder / "film.txt").write_text("a film")
    (folder / "notes.md").write_text("x")
    directory, summary = prepare(tmp_path, FILES, sorted(folder.iterdir()))
    expected = {"without_image": 1, "without_caption": 1, "empty_caption": 1, "unreadable_caption": 1, "unreadable": 1}
    expected |= {"huge": 1, "video": 1, "other": 1, "several": 1}
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
            # 8, 9 and 10: in the order of numbers, whatever their digits.
            picture(tmp_path / "clips" / f"{clip}" / f"{8 + frame}.png", 30 * clip + frame)
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


def film(level: int, frames: int = 5, width: int = 32, height: int = 16) -> bytes:
    """An MP4 whose frames become lighter."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in range(frames):
            grey = Image.new("RGB", (width, height), (level + 20 * frame,) * 3)
            container.mux(stream.encode(av.VideoFrame.from_image(grey)))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def sound() -> bytes:
    """An MP4 without a picture."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def test_videos_are_read_and_what_is_wrong_with_them_is_counted_by_name(tmp_path, monkeypatch):
    folder = tmp_path / "films"
    folder.mkdir()
    films = {f"{number}": film(10 * number) for number in range(6)}
    films |= {"cut": films["1"][:200], "dumb": sound(), "brief": film(3, frames=2), "dot": film(150, width=2, height=2)}
    # Names of larger pixels than a test can make.
    films |= {"wide": film(100, width=512, height=128)}
    for name, content in films.items():
        (folder / f"{name}.mp4").write_bytes(content)
        (folder / f"{name}.txt").write_text(f"film {name}")
    (folder / "mute.mp4").write_bytes(films["0"])
    (folder / "lone.txt").write_text("a caption without its film")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 512 * 100)
    directory, summary = prepare(tmp_path, FILES | {"frames": 2, "every": 2}, sorted(folder.iterdir()))
    expected = {"unreadable": 2, "huge": 1, "without_caption": 1, "without_frames": 1, "short": 1}
    assert {reason: count for reason, count in summary["dropped"].items() if count} == expected
    assert f"{folder / 'dumb.txt'}: unreadable" in summary["unusable"]
    caption, clip = samples(directory)[str(folder / "3.txt")]
    assert caption == "film 3" and clip.shape == (2, 3, 8, 16)
    # A lossy code, of one level a frame.
    assert np.abs(clip.reshape(2, -1).mean(1) - [30, 70]).max() < 4


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    with Hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield hub


def test_files_of_the_hub_are_those_of_a_folder_without_the_rest_of_the_repository(tmp_path, hub):
    files = {"README.md": b"x", "notes.csv": b"x"}
    for number in range(8):
        files |= {f"videos/{number}.mp4": film(10 * number), f"videos/{number}.txt": f"film {number}".encode()}
    source = {"kind": "hub_files", "repo": "owner/films", "revision": hub.add("dataset", "owner/films", files)}
    config = FILES | {"frames": 3, "shapes": ["16x8"]}
    directory, summary = prepare(tmp_path, config | {"source": source})
    assert summary["seen"] == 8 and not any(summary["dropped"].values())
    found = samples(directory)
    assert sorted(found) == [f"videos/{number}.txt" for number in range(8)]
    for name, content in files.items():
        path = tmp_path / "films" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    local, _ = prepare(tmp_path / "local", config, sorted((tmp_path / "films" / "videos").iterdir()))
    for split in ("train", "held_out"):
        assert (local / f"{split}.pixels.bin").read_bytes() == (directory / f"{split}.pixels.bin").read_bytes()
    assert not hub.asked("README|notes")
    with pytest.raises(UserError, match=r"owner/films at .* has no images, videos and captions .* of \*.gif"):
        prepare(tmp_path / "none", config | {"source": source | {"paths": ["*.gif"]}})


def test_rows_of_the_hub_are_chosen_by_their_columns(tmp_path, hub):
    buffers = []
    for number in range(24):
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), (10 * number, 0, 0)).save(buffer, "PNG")
        buffers.append({"bytes": buffer.getvalue(), "path": None})
    buffers[3] = {"bytes": b"no image", "path": None}
    buffers[6] = None
    columns = {
        "painting": buffers,
        "artist": [number % 3 for number in range(24)],
        "title": [None if number == 9 else f"title {number}" for number in range(24)],
        "year": list(range(24)),
    }
    pq.write_table(pa.table(columns), tmp_path / "train.parquet")
    files = {"README.md": DESCRIPTION, "train.parquet": (tmp_path / "train.parquet").read_bytes()}
    revision = hub.add("dataset", "owner/art", files)
    source = {"kind": "hub", "repo": "owner/art", "revision": revision, "where": {"artist": "sargent"}}
    source["columns"] = {"image": "painting", "caption": "title"}
    config = FILES | {"source": source, "shapes": ["8x8"]}
    directory, summary = prepare(tmp_path, config)
    assert summary["seen"] == 8
    expected = {"unreadable": 1, "without_image": 1, "without_caption": 1}
    assert {reason: count for reason, count in summary["dropped"].items() if count} == expected
    found = samples(directory)
    assert sorted(found) == sorted(f"row {number}" for number in (0, 12, 15, 18, 21))
    assert found["row 12"][0] == "title 12" and found["row 12"][1][0, 0, 0, 0] == 120
    classes = source | {"columns": {"image": "painting", "caption": "artist"}, "where": {}}
    directory, _ = prepare(tmp_path / "classes", config | {"source": classes})
    assert samples(directory)["row 13"][0] == "monet"
    for changes, said in (
        ({"where": {"artist": "degas"}}, r"'degas' is no class of column 'artist', which has sargent, monet, manet"),
        ({"where": {"painter": "degas"}}, r"no column 'painter'; its columns are painting, artist, title, year"),
        ({"columns": {"image": "painting", "caption": "year"}}, r"column 'year' has type int64, which is neither text"),
        ({"columns": {"image": "title", "caption": "title"}}, r"column 'title' has type string, which holds no image"),
    ):
        with pytest.raises(UserError, match=said):
            prepare(tmp_path / "wrong", config | {"source": source | changes})
    with pytest.raises(ValidationError, match="rows of the hub have images: write 1, or hub_files"):
        Captions.model_validate(config | {"frames": 3})


def test_nothing_left_is_a_sentence_that_says_what_to_do(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"x")
    with pytest.raises(UserError, match=r"no sample is left for train .*1 video.*give frames if videos are to be read"):
        prepare(tmp_path, FILES, [tmp_path / "a.mp4"])
    with pytest.raises(ValidationError, match="100x900 is a strip"):
        Captions.model_validate(FILES | {"shapes": ["100x900"]})
