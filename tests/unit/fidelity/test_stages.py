"""Samples of a trained model, features of images and their distances: batches, kills, damage, and what is refused."""

import copy
import hashlib
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from PIL import Image

from effllm.data import arrays
from effllm.data.images import prepare
from effllm.data.images.store import open_split
from effllm.errors import UserError
from effllm.fidelity import compare, draw, train_features
from effllm.fidelity.networks import load_network
from effllm.models.dit import DiT, DiTConfig, costs
from effllm.models.dit.loading import load_dit
from effllm.planning.nodes import nodes_behind
from effllm.results.fidelity import FeaturesSummary, FidelityResult, SamplingCost
from effllm.runtime.artifact import Artifact
from effllm.runtime.stage import run
from effllm.stages import STAGES
from effllm.stages.graph import Graph
from effllm.study import parse_study
from effllm.training import diffuse

SHAPE = {
    "model_type": "dit",
    "image_size": 8,
    "channels": 1,
    "patch_size": 4,
    "classes": 10,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
RUN = {
    "images": "digits",
    "architecture": SHAPE,
    "objective": {"kind": "ddpm"},
    "global_batch_size": 8,
    "micro_batch_size": 8,
    "max_steps": 1,
    "optimizer": {"learning_rate": 1e-2, "minimum_learning_rate": 1e-2, "warmup_steps": 0, "weight_decay": 0.0},
    "dtype": "float32",
    "checkpoint_every_steps": None,
    "log_every_steps": 1,
    "held_out_draws": 1,
}
DIGITS = {"source": {"kind": "digits"}, "size": 8, "channels": 1, "held_out_fraction": 0.2}
UNLABELLED = {
    "source": {"kind": "hub", "repo": "owner/photos", "revision": "0" * 40, "columns": {"label": None}},
    "size": 8,
    "channels": 1,
    "held_out_fraction": 0.2,
}
DOTS = {"images": {"size": 1}, "diffusion": {"architecture": SHAPE | {"image_size": 1, "patch_size": 1}}}
SAMPLER = {"kind": "ddim", "steps": 3, "guidance": 2.0, "clip": True}
SAMPLING = {"runs": ["dit"], "sampler": SAMPLER, "images": 25, "seeds": [0, 5], "batch_size": 10, "idle_s": 0.05}
FEATURES = {"kind": "trained", "images": "digits", "steps": 120, "width": 16}
FIDELITY = {"sampling": "few", "features": "small", "reference_images": 200}
BUILDS = {
    "images": prepare.build,
    "features": train_features.build,
    "diffuse": diffuse.build,
    "sample": draw.build,
    "fidelity": compare.build,
}


def study_of(tiny: dict[str, Any], **changes: dict[str, Any]) -> Graph:
    """`changes` of a section's only entry, by the section."""
    sections = {
        "images": {"digits": DIGITS},
        "diffusion": {"dit": RUN},
        "sampling": {"few": SAMPLING},
        "features": {"small": FEATURES},
        "fidelity": {"near": FIDELITY},
    }
    for section, change in changes.items():
        (id,) = sections[section]
        sections[section] = {id: change if "kind" in change else sections[section][id] | change}
    return Graph(parse_study(copy.deepcopy(tiny) | sections | {"tables": {}}, "test"))


class Built:
    """Artifacts of the study's nodes, built where they are asked for."""

    def __init__(self, tiny: dict[str, Any], root: Path, **changes: dict[str, Any]):
        self.graph, self.root = study_of(tiny, **changes), root

    def __call__(self, stage: str, id: str) -> Artifact:
        inputs = {}
        for name, path in self.graph.parents(stage, id).items():
            _, *parent, _ = Path(path).parts
            inputs[name] = [self(*parent).directory / "manifest.json"]
        output = self.root / "results" / stage / id
        return run(STAGES[stage], BUILDS[stage], spec=self.graph.spec(stage, id), inputs=inputs, output=output)


@pytest.fixture(scope="module")
def whole(tiny_text: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of the study; tests copy them."""
    root = tmp_path_factory.mktemp("whole")
    assert Built(tiny_text, root)("fidelity", "dit.near").manifest.status == "ok"
    return root


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole / "results", tmp_path / "results")
    return tmp_path


def pixels(artifact: Artifact, seed: int) -> np.ndarray:
    return np.array(open_split(artifact.directory, f"seed{seed}", 1, 8)[0])


def test_samples_are_the_same_in_other_batches_and_their_classes_come_in_turn(tiny, whole, copied):
    ours = Built(tiny, whole)("sample", "dit.few")
    theirs = Built(tiny, copied, sampling={"batch_size": 7})("sample", "dit.few")
    for seed in (0, 5):
        assert np.abs(pixels(ours, seed).astype(int) - pixels(theirs, seed)).max() <= 1
    assert (pixels(ours, 0) != pixels(ours, 5)).mean() > 0.5
    _, labels = open_split(ours.directory, "seed5", 1, 8)
    assert labels.tolist() == [number % 10 for number in range(25)]
    assert ours.json("sample.json")["evaluations_per_image"] == 6


def test_the_record_and_the_grid_of_a_sampling(tiny, whole):
    artifact = Built(tiny, whole)("sample", "dit.few")
    cost = SamplingCost.read(artifact.directory)
    assert (cost.images, cost.images_resumed) == (50, 0)
    assert cost.images_per_s == pytest.approx(1 / cost.seconds_per_image)
    assert cost.images_per_s_ci95[0] < cost.images_per_s_ci95[1]
    assert cost.memory_peak_gb == cost.telemetry.memory_host_peak_gb > 0
    for name in ("energy_j_per_image", "mfu"):
        value, reason = cost.cell(name)
        assert value is not None or reason not in (None, "the result does not say why")
    with Image.open(artifact.directory / "records" / "grid.png") as grid:
        assert grid.size == (2 * 34 - 2, 10 * 34 - 2)
        # Row 3, column 1: the second sample of class 3, each pixel four times as large.
        shown = np.asarray(grid)[3 * 34 : 3 * 34 + 32, 34:66]
    assert (shown == pixels(artifact, 0)[13, 0].repeat(4, 0).repeat(4, 1)).all()


def test_a_killed_sampling_goes_on_behind_its_last_batch(tiny, whole, copied, monkeypatch):
    shutil.rmtree(copied / "results" / "sample")
    plain, counted = draw.Sampled.__call__, []

    def dying(self, seed, numbers, steps=None):
        counted.append((seed, numbers))
        if len(counted) == 5:
            raise KeyboardInterrupt
        return plain(self, seed, numbers, steps)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(draw.Sampled, "__call__", dying)
        Built(tiny, copied)("sample", "dit.few")
    again = Built(tiny, copied)("sample", "dit.few")
    assert again.manifest.payload == Built(tiny, whole)("sample", "dit.few").manifest.payload
    cost = SamplingCost.read(again.directory)
    assert (cost.images, cost.images_resumed) == (50 - 25, 25)
    assert "resumed" in {finding.rule for finding in cost.findings}


def test_the_small_network_learns_the_digits_and_gives_standardised_features(tiny, whole, copied):
    artifact = Built(tiny, whole)("features", "small")
    summary = FeaturesSummary.read(artifact.directory)
    assert summary.held_out_accuracy > 0.8
    learned, _ = open_split(Built(tiny, whole)("images", "digits").directory, "train", 1, 8)
    features = load_network(artifact, "cpu").features(torch.from_numpy(np.array(learned)))
    varying = features[:, features.std(dim=0) > 0.5]
    torch.testing.assert_close(varying.mean(dim=0), torch.zeros(varying.shape[1]).double(), atol=1e-4, rtol=0)
    torch.testing.assert_close(varying.std(dim=0), torch.ones(varying.shape[1]).double(), atol=1e-4, rtol=0)
    assert varying.shape[1] > 8
    shutil.rmtree(copied / "results" / "features")
    assert Built(tiny, copied)("features", "small").manifest.payload == artifact.manifest.payload


def test_fidelity_has_every_seed_and_the_floor_of_real_images(tiny, whole):
    found = FidelityResult.read(Built(tiny, whole)("fidelity", "dit.near").directory)
    assert [each.seed for each in found.by_seed] == [0, 5]
    assert (found.images, found.reference_images, found.floor.images) == (25, 200, 25)
    mean = np.mean([each.frechet_distance for each in found.by_seed])
    assert found.frechet_distance == pytest.approx(mean)
    low, high = found.frechet_distance_ci95
    assert low < mean < high
    # A model after one step draws nothing like a digit; real images are what they are.
    assert found.frechet_distance > 3 * found.floor.frechet_distance
    assert found.kernel_distance > found.floor.kernel_distance
    assert found.floor.label_agreement > 0.6 > found.label_agreement
    assert "few_images" not in {finding.rule for finding in found.findings}


def test_few_images_are_noted_and_one_seed_has_no_interval(tiny, copied):
    changes = {"sampling": {"images": 12, "seeds": [3]}}
    found = FidelityResult.read(Built(tiny, copied, **changes)("fidelity", "dit.near").directory)
    assert found.cell("recall_ci95") == (None, "one seed has no interval")
    assert [finding.rule for finding in found.findings] == ["few_images"]


def test_a_model_that_gives_no_numbers_is_a_result(tiny, copied, monkeypatch):
    model = DiT(DiTConfig(**{key: value for key, value in SHAPE.items() if key != "model_type"}))
    torch.nn.init.constant_(model.output_proj.bias, float("nan"))
    monkeypatch.setattr(draw, "load_dit", lambda checkpoint, device: model)
    built = Built(tiny, copied, sampling={"seeds": [1]})("sample", "dit.few")
    assert (built.manifest.status, built.manifest.reason) == (
        "nan",
        "10 of 10 sampled images hold values that are not finite",
    )


def test_a_damaged_model_ends_in_a_sentence(tiny, copied):
    trained, spec = copied / "results" / "diffuse" / "dit", study_of(tiny).spec("sample", "dit.few")
    weights = trained / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(UserError, match=r"model\.safetensors"):
        inputs = {"run": [trained / "manifest.json"]}
        run(STAGES["sample"], draw.build, spec=spec, inputs=inputs, output=copied / "results" / "sample" / "new")
    with pytest.raises(UserError, match=r"cannot be loaded .*: delete"):
        load_dit(weights.parent, "cpu")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sampling": {"images": 9}}, "sampling.few.images: 9 is less than the 10 classes of 'dit'"),
        ({"sampling": {"runs": ["dot"]}}, "sampling.few.runs: 'dot' does not exist; did you mean 'dit'"),
        ({"sampling": {"seeds": [1, 1]}}, "seeds.*1 given twice"),
        ({"sampling": {"sampler": SAMPLER | {"kind": "pndm"}}}, "sampler.kind"),
        ({"sampling": {"sampler": SAMPLER | {"kind": "euler"}}}, "sampling.few.sampler: kind euler does not sample"),
        ({"sampling": {"sampler": SAMPLER | {"steps": 2000}}}, "steps 2000 is not from 2 to the 1000"),
        (
            {"diffusion": {"objective": {"kind": "flow"}, "architecture": SHAPE | {"learned_sigma": False}}},
            "kind ddim does not sample from a model of kind flow: choose euler",
        ),
        ({"diffusion": {"draws": {"label_dropout": 0.0}}}, "sampler.guidance: 2 needs images without a label"),
        ({"fidelity": {"neighbours": 25}}, "neighbours: 25 need more images than the 25 of sampling.few.images"),
        ({"fidelity": {"reference_images": 3}}, "than the 3 of fidelity.near.reference_images"),
        ({"fidelity": {"features": "big"}}, "fidelity.near.features: 'big' does not exist"),
        ({"features": {"images": "digit"}}, "features.small.images: 'digit' does not exist"),
        ({"images": UNLABELLED}, "dit.architecture.classes: 10 is not the 0 of 'digits': write 0"),
        (
            {"images": UNLABELLED, "diffusion": {"architecture": SHAPE | {"classes": 0}}},
            "few.sampler.guidance: 2 needs labels, and the images of 'dit' have none: write 1",
        ),
        (
            {
                "images": UNLABELLED,
                "diffusion": {"architecture": SHAPE | {"classes": 0}},
                "sampling": {"sampler": SAMPLER | {"guidance": 1.0}},
            },
            "features.small.images: 'digits' have no labels, and the network learns to tell labels apart",
        ),
        (DOTS, "features.small.images: 'digits' are of size 1, and the network halves images: take 2 at least"),
    ],
)
def test_what_cannot_be_sampled_or_compared_is_refused_before_anything_runs(tiny, changes, said):
    with pytest.raises(UserError, match=said):
        study_of(tiny, **changes)


class _Photos:
    label, classes = "photos", []

    def pictures(self):
        levels = np.random.default_rng(0).integers(0, 256, (40, 1, 8, 8), dtype=np.uint8)
        yield from ((str(number), 0, picture) for number, picture in enumerate(levels))


def test_images_without_labels_are_learned_and_drawn(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "open_source", lambda *_: _Photos())
    built = Built(tiny, tmp_path)
    sections = {
        "diffusion": {"architecture": SHAPE | {"classes": 0}},
        "sampling": {"sampler": SAMPLER | {"guidance": 1.0}},
        "features": {"kind": "inception"},
    }
    built.graph = study_of(tiny, images=UNLABELLED, **sections)
    artifact = built("sample", "dit.few")
    assert open_split(artifact.directory, "seed5", 1, 8)[1].tolist() == [0] * 25
    with Image.open(artifact.directory / "records" / "grid.png") as grid:
        assert grid.size == (2 * 34 - 2, 10 * 34 - 2)
        assert (np.asarray(grid)[34:66, 34:66] == pixels(artifact, 0)[11, 0].repeat(4, 0).repeat(4, 1)).all()


def test_labels_without_an_image_for_training_and_images_of_one_label_are_told(tiny, copied, monkeypatch):
    built, path = Built(tiny, copied), copied / "results" / "images" / "digits" / "train.labels.npy"
    load = arrays.load
    monkeypatch.setattr(arrays, "load", lambda file: np.minimum(load(file), 7) if file == path else load(file))
    built.graph = study_of(tiny, fidelity={"neighbours": 2})
    (finding,) = FidelityResult.read(built("fidelity", "dit.near").directory).findings
    assert finding.message.startswith("2 of 10 labels, ['8', '9'], have no image for training, and samples of them")
    monkeypatch.setattr(arrays, "load", lambda file: np.minimum(load(file), 0) if file == path else load(file))
    built.graph = study_of(tiny, features={"steps": 121})
    with pytest.raises(UserError, match=r"features\.small\.images: 'digits' have one label, and the network learns to"):
        built("features", "small")


class _Inception(torch.nn.Module):
    """What is used of torch-fidelity's class: two features of uint8 images with three channels."""

    def __init__(self, name, features_list, feature_extractor_weights_path):
        super().__init__()
        assert features_list == ["2048"]
        self.fc = torch.nn.Linear(192, 2)
        self.load_state_dict(torch.load(feature_extractor_weights_path, weights_only=True))

    def forward(self, images):
        assert images.dtype == torch.uint8 and images.shape[1] == 3
        return (self.fc(images.flatten(1).float()),)


@pytest.fixture
def published(tmp_path, monkeypatch) -> Callable[[object], dict[str, Any]]:
    """Puts a file into the cache of addresses, and gives the settings that name it."""

    def publish(content: object) -> dict[str, Any]:
        torch.save(content, tmp_path / "weights.pth")
        sha256 = hashlib.sha256((tmp_path / "weights.pth").read_bytes()).hexdigest()
        (tmp_path / "cache" / "addresses").mkdir(parents=True)
        (tmp_path / "weights.pth").rename(tmp_path / "cache" / "addresses" / sha256)
        return {"kind": "inception", "url": "https://nowhere.invalid/weights.pth", "sha256": sha256}

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return publish


def test_inceptions_weights_are_kept_as_tensors_and_give_its_features(tiny, copied, published, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", SimpleNamespace(FeatureExtractorInceptionV3=_Inception))
    weights = {"fc.weight": torch.linspace(-1e-3, 1e-3, 384).reshape(2, 192), "fc.bias": torch.tensor([0.5, -0.5])}
    built = Built(tiny, copied)
    built.graph = study_of(tiny, features=published(weights))
    assert built.graph.parents("features", "small") == {}
    assert FeaturesSummary.read(built("features", "small").directory).parameters == 386
    found = FidelityResult.read(built("fidelity", "dit.near").directory)
    assert (found.features_kind, found.features_accuracy) == ("inception", None)
    assert found.cell("label_agreement")[1] == "the network does not tell the labels of these images apart"
    grey = torch.from_numpy(pixels(built("sample", "dit.few"), 0))
    expected = grey.repeat(1, 3, 1, 1).flatten(1).float() @ weights["fc.weight"].T + weights["fc.bias"]
    network = load_network(built("features", "small"), "cpu")
    torch.testing.assert_close(network.features(grey), expected.double())


def test_weights_that_are_more_than_tensors_are_refused(tiny, copied, published):
    built = Built(tiny, copied)
    built.graph = study_of(tiny, features=published({"fc.weight": Path("x")}))
    with pytest.raises(UserError, match=r"features\.url: the file holds no tensors"):
        built("features", "small")


def test_inception_without_its_package_is_told_how_to_get_it(tiny, copied, published, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    built = Built(tiny, copied)
    built.graph = study_of(tiny, features=published({"fc.weight": torch.zeros(2, 192)}))
    with pytest.raises(UserError, match="pip install --no-deps -r requirements-inception"):
        built("fidelity", "dit.near")


def test_what_they_cost_is_planned_and_what_was_measured_is_found(tiny, whole):
    graph = study_of(tiny)
    nodes = ["images/digits", "features/small", "diffuse/dit", "sample/dit.few", "fidelity/dit.near"]
    assert sorted(nodes_behind(graph, ["fidelity/dit.near"])) == sorted(nodes)
    parent, config = graph.spec("diffuse", "dit")["config"], graph.spec("sample", "dit.few")["config"]
    assert "runs" not in config
    cost = STAGES["sample"].cost(SimpleNamespace(config=config, config_of={"run": parent}.get))
    shape = graph.study.diffusion["dit"].architecture.shape()
    assert cost.flops == 50 * 6 * costs.forward_flops(shape)
    assert (cost.disk_b, cost.scratch_b) == (50 * 64, 50 * 64)
    artifact = Built(tiny, whole)("sample", "dit.few")
    work, record = STAGES["sample"].measured_work(artifact), SamplingCost.read(artifact.directory)
    assert (work.work_s, work.share) == (pytest.approx(50 * record.seconds_per_image), 1)
    assert record.flops_per_image == cost.flops / 50
