"""Autoencoders and latents: diffusers' own figures, kills, runs on latents, and what is refused."""

import copy
import io
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save, save_file

from effllm.data.images import prepare
from effllm.data.images.store import ImageSet, open_split
from effllm.data.latents import encode
from effllm.data.latents.store import LatentSet
from effllm.diffusion.draws import TrainingDraws, posterior_noise
from effllm.errors import UserError
from effllm.fidelity import compare, draw, train_features
from effllm.models import import_autoencoder
from effllm.models.autoencoder import WEIGHTS, load_autoencoder
from effllm.planning.nodes import nodes_behind
from effllm.results.data import AutoencoderSummary, LatentsSummary
from effllm.results.fidelity import FidelityResult, SampleSummary
from effllm.runtime.artifact import Artifact
from effllm.runtime.stage import run
from effllm.stages import STAGES
from effllm.stages.graph import Graph
from effllm.study import parse_study
from effllm.training import diffuse
from tests.hub.server import Hub
from tests.unit.data.autoencoders import save_autoencoder

SHAPE = {
    "model_type": "dit",
    "image_size": 4,
    "channels": 2,
    "patch_size": 2,
    "classes": 10,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
RUN = {
    "images": "digit-latents",
    "architecture": SHAPE,
    "objective": {"kind": "ddpm"},
    "draws": {"flip": True},
    "global_batch_size": 8,
    "micro_batch_size": 8,
    "max_steps": 2,
    "optimizer": {"learning_rate": 1e-2, "minimum_learning_rate": 1e-2, "warmup_steps": 0, "weight_decay": 0.0},
    "dtype": "float32",
    "checkpoint_every_steps": None,
    "log_every_steps": 1,
    "held_out_draws": 1,
}
SAMPLER = {"kind": "ddim", "steps": 2}
SECTIONS: dict[str, dict[str, Any]] = {
    "images": {"digits": {"source": {"kind": "digits"}, "size": 8, "channels": 1, "held_out_fraction": 0.03}},
    "latents": {"digit-latents": {"images": "digits", "autoencoder": "small", "mirrored": True, "batch_size": 200}},
    "diffusion": {"dit": RUN},
    "sampling": {"few": {"runs": ["dit"], "sampler": SAMPLER, "images": 12, "batch_size": 6, "idle_s": 0.05}},
    "features": {"cnn": {"kind": "trained", "images": "digits", "steps": 20, "width": 8}},
    "fidelity": {"near": {"sampling": "few", "features": "cnn", "reference_images": 50}},
}
BUILDS = {
    "images": prepare.build,
    "autoencoder": import_autoencoder.build,
    "latents": encode.build,
    "features": train_features.build,
    "diffuse": diffuse.build,
    "sample": draw.build,
    "fidelity": compare.build,
}


class Built:
    """Artifacts of the study's nodes, built where they are asked for; `changes` of a section's entry by its name."""

    def __init__(
        self, tiny: dict[str, Any], root: Path, autoencoder: dict[str, Any] | None = None, **changes: dict[str, Any]
    ):
        sections = copy.deepcopy(SECTIONS)
        local = {"kind": "local", "path": str(root / "autoencoder")}
        sections["autoencoders"] = {"small": autoencoder or local}
        for section, change in changes.items():
            for entry in sections[section].values():
                entry.update(change)
        self.graph = Graph(parse_study(copy.deepcopy(tiny) | sections | {"tables": {}}, "test"))
        self.root = root

    def __call__(self, stage: str, id: str) -> Artifact:
        inputs: dict[str, list[Path]] = {}
        for name, value in self.graph.parents(stage, id).items():
            if isinstance(value, list):
                inputs[name] = [Path(path) for path in value]
                continue
            _, *parent, _ = Path(value).parts
            inputs[name] = [self(*parent).directory / "manifest.json"]
        output = self.root / "results" / stage / id
        return run(STAGES[stage], BUILDS[stage], spec=self.graph.spec(stage, id), inputs=inputs, output=output)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_text: dict[str, Any]) -> Path:
    """The results of the study; tests copy them."""
    root = tmp_path_factory.mktemp("whole")
    save_autoencoder(root / "autoencoder")
    built = Built(tiny_text, root)("latents", "digit-latents")
    assert built.manifest.status == "ok"
    return root


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    return tmp_path


def held_out(root: Path) -> tuple[np.ndarray, LatentSet]:
    pixels, _ = open_split(root / "results" / "images" / "digits", "held_out", 1, 8)
    return np.array(pixels), LatentSet(root / "results" / "latents" / "digit-latents", "held_out")


def posterior(root: Path, pixels: np.ndarray, name: str = "autoencoder") -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation by diffusers alone, from the numbers that its encoder gives."""
    from diffusers import AutoencoderKL

    model = AutoencoderKL.from_pretrained(root / name)
    with torch.no_grad():
        images = torch.from_numpy(pixels).float() / 255 * 2 - 1
        mean, logarithm = model.encode(images).latent_dist.parameters.chunk(2, dim=1)
    return mean, torch.exp(logarithm.clamp(-30, 20) / 2)


def test_latents_are_draws_from_the_posterior_of_each_view_shifted_and_scaled(whole):
    pixels, latents = held_out(whole)
    for view, images, found in (
        (0, pixels, np.stack([latents[index][0] for index in range(len(latents))])),
        (1, pixels[..., ::-1].copy(), np.stack([latents.mirrored(index) for index in range(len(latents))])),
    ):
        mean, deviation = posterior(whole, images)
        noise = posterior_noise(0, 2 + view, range(len(pixels)), (2, 4, 4))
        expected = (mean + deviation * noise - 0.25) * 0.5
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=2e-3, atol=2e-3)
    # Latents of the mirrored image are not the mirrored latents.
    assert np.abs(latents.mirrored(0) - latents[0][0][..., ::-1]).max() > 0.1
    noise = [posterior_noise(0, view, range(2), (2, 4, 4)) for view in range(4)]
    assert len({round(float(each[0, 0, 0, 0]), 6) for each in noise}) == 4


def test_means_are_diffusers_own_and_the_summary_says_what_comes_back(tiny, copied):
    from diffusers import AutoencoderKL

    artifact = Built(tiny, copied, latents={"posterior": "mean"})("latents", "digit-latents")
    pixels, latents = held_out(copied)
    expected, _ = posterior(copied, pixels)
    found = torch.from_numpy(np.stack([latents[index][0] for index in range(len(latents))]))
    torch.testing.assert_close(found, (expected - 0.25) * 0.5, rtol=2e-3, atol=2e-3)
    summary = LatentsSummary.read(artifact.directory)
    assert (summary.views, summary.channels, summary.size, summary.image_size) == (2, 2, 4, 8)
    assert (summary.posterior, summary.classes) == ("mean", list("0123456789"))
    train = LatentSet(artifact.directory, "train")
    assert latents.labels.tolist() == ImageSet(copied / "results" / "images" / "digits", "held_out").labels.tolist()
    both = np.stack([(train[index][0], train.mirrored(index)) for index in range(len(train))])
    assert summary.mean == pytest.approx(both.mean(), abs=1e-5)
    assert summary.standard_deviation == pytest.approx(both.std(), rel=1e-4)
    model = AutoencoderKL.from_pretrained(copied / "autoencoder")
    with torch.no_grad():
        decoded = model.decode(found[: summary.decoded_images].float() / 0.5 + 0.25).sample
    levels = ((decoded / 2 + 0.5).clamp(0, 1) * 255).round().numpy()
    error = np.square(levels - pixels[: summary.decoded_images]).mean()
    assert summary.decoded_psnr_db == pytest.approx(10 * math.log10(255**2 / error), rel=1e-3)
    assert summary.autoencoder_parameters == sum(parameter.numel() for parameter in model.parameters())


def test_a_killed_encoding_goes_on_behind_its_last_batch(tiny, whole, copied, monkeypatch):
    shutil.rmtree(copied / "results" / "latents")
    plain, counted = encode._Encoder._encoded, []

    def dying(self, pixels, numbers, split):
        counted.append(numbers)
        if len(counted) == 3:
            raise KeyboardInterrupt
        return plain(self, pixels, numbers, split)

    monkeypatch.setattr(encode._Encoder, "_encoded", dying)
    with pytest.raises(KeyboardInterrupt):
        Built(tiny, copied)("latents", "digit-latents")
    (partial,) = (copied / "results" / ".scratch" / "latents").rglob("train.latents.bin")
    # A batch that came in half.
    partial.write_bytes(partial.read_bytes() + b"half")
    again = Built(tiny, copied)("latents", "digit-latents")
    assert counted[3] == counted[2] == range(400, 600)
    assert again.manifest.payload == Built(tiny, whole)("latents", "digit-latents").manifest.payload


def test_a_model_learns_latents_and_its_samples_are_images(tiny, copied):
    built = Built(tiny, copied)
    sample = built("sample", "dit.few")
    summary = SampleSummary.read(sample.directory)
    assert (summary.size, summary.channels, summary.images) == (8, 1, 12)
    drawn = np.array(open_split(sample.directory, "seed0", 1, 8)[0])
    assert len(drawn) == 12 and drawn.std() > 0
    found = FidelityResult.read(built("fidelity", "dit.near").directory)
    assert (found.images, found.reference_images) == (12, 50)
    nodes = ["images/digits", "autoencoder/small", "latents/digit-latents", "features/cnn", "diffuse/dit"]
    assert sorted(nodes_behind(built.graph, ["fidelity/dit.near"])) == sorted(
        [*nodes, "sample/dit.few", "fidelity/dit.near"]
    )


def test_a_flip_takes_the_latents_of_the_mirrored_image(whole, tiny):
    _, latents = held_out(whole)
    run = Built(tiny, whole).graph.study.diffusion["dit"]
    order = np.arange(40)
    draws = TrainingDraws(latents, order, 8, run.objective, run.draws, 10, seed=0)
    flipped = [np.array_equal(draws[index]["images"], latents.mirrored(index)) for index in order]
    kept = [np.array_equal(draws[index]["images"], latents[index][0]) for index in order]
    assert 8 < sum(flipped) < 32 and [not each for each in kept] == flipped


def older_names(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same weights under the names that diffusers gave an autoencoder's attention in 2022."""
    older = {}
    for name, tensor in weights.items():
        for new, old in (
            (".to_q.", ".query."),
            (".to_k.", ".key."),
            (".to_v.", ".value."),
            (".to_out.0.", ".proj_attn."),
        ):
            name = name.replace(new, old) if "attentions" in name else name
        older[name] = tensor
    assert older.keys() != weights.keys()
    return older


def test_names_of_older_weights_are_read_as_diffusers_reads_them(whole, tmp_path):
    shutil.copytree(whole / "autoencoder", tmp_path / "old")
    older = older_names(load_file(tmp_path / "old" / WEIGHTS))
    save_file(older, tmp_path / "old" / WEIGHTS, metadata={"format": "pt"})
    images = torch.arange(64, dtype=torch.uint8).reshape(1, 1, 8, 8)
    ours, theirs = (load_autoencoder(path, "cpu").encode(images) for path in (whole / "autoencoder", tmp_path / "old"))
    assert torch.equal(ours, theirs)


# As ILSVRC/imagenet-1k describes itself, with three classes of a thousand.
IMAGENET = """---
license: other
extra_gated_prompt: By clicking on "Access repository" below, you accept the terms of access
dataset_info:
  features:
  - name: image
    dtype: image
  - name: label
    dtype:
      class_label:
        names:
          '0': tench, Tinca tinca
          '1': goldfish, Carassius auratus
          '2': great white shark, white shark
  splits:
  - {name: train, num_bytes: 1, num_examples: 40}
  - {name: validation, num_bytes: 1, num_examples: 2}
  - {name: test, num_bytes: 1, num_examples: 2}
configs:
- config_name: default
  data_files:
  - {split: train, path: data/train-*}
  - {split: validation, path: data/validation-*}
  - {split: test, path: data/test-*}
---
"""


def photographs(count: int, first: int = 0) -> bytes:
    """A parquet of JPEG files as ImageNet has them: colours mostly, a grey one, one in printer's colours, and a PNG."""
    rows, draw = [], np.random.default_rng(first)
    for number in range(first, first + count):
        picture = Image.fromarray(draw.integers(0, 256, (draw.integers(18, 40), 30, 3), dtype=np.uint8))
        picture = picture.convert({1: "L", 2: "CMYK"}.get(number, "RGB"))
        picture.save(buffer := io.BytesIO(), "PNG" if number == 3 else "JPEG")
        image = {"bytes": buffer.getvalue(), "path": f"n01440764_{number}.JPEG"}
        rows.append({"image": image, "label": number % 3})
    pq.write_table(pa.Table.from_pylist(rows), buffer := io.BytesIO())
    return buffer.getvalue()


def test_the_published_repositories_become_latents(hub: Hub, tiny, tmp_path, monkeypatch):
    """ILSVRC/imagenet-1k, which is gated, and stabilityai/sd-vae-ft-ema, as their files lie on the hub."""
    blocks = {
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "block_out_channels": [4, 4, 8, 8],
    }
    channels = {"in_channels": 3, "out_channels": 3, "latent_channels": 4}
    save_autoencoder(tmp_path / "made", **blocks, **channels, scaling_factor=0.18215, shift_factor=None)
    config = json.loads((tmp_path / "made" / "config.json").read_text())
    # Of a version that did not know them yet.
    absent = (
        "scaling_factor",
        "shift_factor",
        "force_upcast",
        "use_quant_conv",
        "use_post_quant_conv",
        "mid_block_add",
    )
    kept = {key: value for key, value in config.items() if not key.startswith(("latents_", *absent))}
    weights = save(older_names(load_file(tmp_path / "made" / WEIGHTS)), metadata={"format": "pt"})
    published = {
        ".gitattributes": b"*.bin filter=lfs",
        "README.md": b"# Improved Autoencoders",
        "config.json": json.dumps(kept | {"_diffusers_version": "0.4.2", "sample_size": 256}).encode(),
        "diffusion_pytorch_model.bin": b"pickled",
        WEIGHTS: weights,
    }
    autoencoder = {"kind": "hub", "repo": "stabilityai/sd-vae-ft-ema"}
    autoencoder["revision"] = hub.add("model", autoencoder["repo"], published)
    parts = {f"data/train-{part:05}-of-00002.parquet": photographs(20, 20 * part) for part in range(2)}
    parts |= {f"data/{split}-00000-of-00001.parquet": photographs(2, 90) for split in ("validation", "test")}
    repo, form = "ILSVRC/imagenet-1k", {"README.md": IMAGENET.encode(), "classes.py": b"IMAGENET2012_CLASSES = {}"}
    source = {"kind": "hub", "repo": repo, "revision": hub.add("dataset", repo, parts | form, "gated")}
    images = {"source": source, "size": 16, "channels": 3, "held_out_fraction": 0.2}
    shape = SHAPE | {"image_size": 2, "channels": 4, "classes": 3}
    built = Built(tiny, tmp_path, autoencoder, images=images, diffusion={"architecture": shape})
    with pytest.raises(UserError, match=r"imagenet-1k is gated: accept its licence at .*HF_TOKEN"):
        built("images", "digits")
    hub.tokens["hf_granted"] = {repo}
    monkeypatch.setenv("HF_TOKEN", "hf_granted")
    latents = LatentsSummary.read(built("latents", "digit-latents").directory)
    summary = json.loads((tmp_path / "results" / "images" / "digits" / "images.json").read_text())
    assert summary["seen"] == 40 == sum(summary["splits"].values()) and summary["odd"] == {"print": 1}
    assert summary["classes"][0] == "tench, Tinca tinca" and len(summary["classes"]) == 3
    assert not hub.asked("validation|/test|pytorch_model.bin")
    assert (latents.channels, latents.size, latents.image_size, latents.views) == (4, 2, 16, 2)
    pixels = np.array(open_split(tmp_path / "results" / "images" / "digits", "held_out", 3, 16)[0])
    kept = LatentSet(tmp_path / "results" / "latents" / "digit-latents", "held_out")
    mean, deviation = posterior(tmp_path, pixels, "made")
    expected = (mean + deviation * posterior_noise(0, 2, range(len(pixels)), (4, 2, 2))) * 0.18215
    found = torch.from_numpy(np.stack([kept[index][0] for index in range(len(kept))]))
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-3)


def test_what_was_imported_is_the_two_files_and_what_they_say(tiny, whole):
    artifact = Built(tiny, whole)("autoencoder", "small")
    assert sorted(artifact.manifest.payload) == ["autoencoder.json", "model/config.json", f"model/{WEIGHTS}"]
    summary = AutoencoderSummary.read(artifact.directory)
    assert (summary.channels, summary.latent_channels, summary.downscale) == (1, 2, 2)
    assert (summary.scaling_factor, summary.shift_factor) == (0.5, 0.25)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"_class_name": "UNet2DModel"}, "is that of 'UNet2DModel' and not of an AutoencoderKL"),
        ({"latents_mean": [0.0, 0.0]}, "normalizes latents channel by channel"),
        ({"in_channels": 3}, "in_channels and out_channels are not 1 or 3 each"),
        ({"latent_channels": "two"}, "latent_channels 'two' is no number of channels"),
        ({"scaling_factor": 0}, "scaling_factor 0 is not positive"),
        ({"shift_factor": "far"}, "shift_factor 'far' is no number"),
        ({"block_out_channels": 8}, "block_out_channels is no list of a few widths"),
        (None, f"has no {WEIGHTS}"),
    ],
    ids=lambda value: next(iter(value), "none") if isinstance(value, dict) else None,
)
def test_what_is_no_autoencoder_is_refused_before_anything_runs(tiny, copied, change, said):
    path = copied / "autoencoder" / "config.json"
    if change is None:
        (copied / "autoencoder" / WEIGHTS).unlink()
    else:
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=rf"^autoencoders\.small\.path: .*{said}"):
        Built(tiny, copied).graph.parents("autoencoder", "small")


def test_weights_that_are_not_whole_are_no_autoencoder(whole, tmp_path):
    shutil.copytree(whole / "autoencoder", tmp_path / "model")
    weights = load_file(tmp_path / "model" / WEIGHTS)
    weights.pop("decoder.conv_in.bias")
    save_file(weights, tmp_path / "model" / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(Exception, match=r"the checkpoint lacks decoder\.conv_in\.bias"):
        load_autoencoder(tmp_path / "model", "cpu")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"latents": {"images": "digit"}}, "latents.digit-latents.images: 'digit' does not exist"),
        ({"latents": {"autoencoder": "big"}}, "latents.digit-latents.autoencoder: 'big' does not exist"),
        ({"latents": {"mirrored": False}}, "write latents.digit-latents.mirrored: true"),
        ({"diffusion": {"images": "digit-latent"}}, "'digit-latent' does not exist; did you mean 'digit-latents'"),
        ({"diffusion": {"architecture": SHAPE | {"image_size": 6}}}, "image_size: 6 divides no side of 8 pixels"),
        ({"sampling": {"sampler": SAMPLER | {"clip": True}}}, "sampling.few.sampler.clip: .* write clip: false"),
        (
            {"images": {"source": {"kind": "noise", "images": 9, "classes": 10}}},
            "latents.digit-latents.images: 'digits' are noise",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused_before_anything_runs(tiny, tmp_path, changes, said):
    with pytest.raises(UserError, match=said):
        Built(tiny, tmp_path, **changes)


def test_shapes_that_only_the_autoencoder_tells_of_end_in_a_sentence(tiny, copied):
    built = Built(tiny, copied, diffusion={"architecture": SHAPE | {"image_size": 2, "patch_size": 1}})
    said = "image_size 2 and channels 2 are not those of the latents 'digit-latents': write image_size 4 and channels 2"
    with pytest.raises(UserError, match=said):
        built("diffuse", "dit")
    colours = Built(tiny, copied, images={"channels": 3})
    with pytest.raises(UserError, match=r"takes images of 1 channels, and 'digits' have 3: write images\.digits\.chan"):
        colours("latents", "digit-latents")
    odd = Built(
        tiny, copied, images={"size": 9}, diffusion={"architecture": SHAPE | {"image_size": 3, "patch_size": 1}}
    )
    with pytest.raises(UserError, match=r"a side of 9 pixels is no multiple of the 2"):
        odd("latents", "digit-latents")
