"""Fine-tuning of SD3 and Wan on captions: data to adapter, stopping and going on, what diffusers loads, FLOPs, loss."""

import importlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline, WanPipeline, WanTransformer3DModel
from PIL import Image
from safetensors.torch import load_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from effllm.data.encodings import growing
from effllm.errors import Interrupted, UserError
from effllm.models.generators import FAMILIES, tiny
from effllm.runtime.artifact import Artifact
from effllm.runtime.stage import run
from effllm.stages import STAGES
from effllm.stages.graph import Graph
from effllm.study import parse_study
from effllm.training.adapters import load_adapter
from effllm.training.caption_draws import CaptionDraws, shaped_order, shifted
from effllm.training.flow_transformer import FlowTransformer, step_flops
from effllm.training.methods import METHODS

SUITE = {
    "captions": "pictures",
    "models": ["sd3"],
    "methods": ["lora", "loha", "lokr", "glora", "full"],
    "samples_per_step": 4,
    "micro_batch_size": 2,
    "max_steps": 6,
    "learning_rate": 1e-2,
    "dtype": "float32",
    "checkpoint_every_steps": 2,
    "log_every_steps": 2,
    "preview": {"samples": 2, "steps": 2, "guidance": 2.0},
}
TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
PIPELINES = {"sd3": StableDiffusion3Pipeline, "wan": WanPipeline}
TRANSFORMERS = {"sd3": SD3Transformer2DModel, "wan": WanTransformer3DModel}


class Study:
    """A study of two tiny pipelines on a few pictures of two shapes and a few clips."""

    def __init__(self, tiny_text: dict[str, Any], root: Path):
        source = {"kind": "files", "paths": [f"{root}/pictures/*"]}
        captions = {"source": source, "shapes": ["16x16", "24x16"], "held_out_fraction": 0.4}
        clips = captions | {"shapes": ["16x16"], "frames": 5, "source": source | {"paths": [f"{root}/clips/*"]}}
        own = {
            "captions": {"pictures": captions, "clips": clips},
            "generators": {name: {"source": {"kind": "tiny", "family": name}, "text_tokens": 8} for name in FAMILIES},
            "methods": {
                "lora": {"kind": "lora", "rank": 2, "alpha": 4, "target_modules": TARGETS},
                "loha": {"kind": "loha", "match_parameters": "lora", "target_modules": TARGETS},
                "lokr": {"kind": "lokr", "match_parameters": "lora", "target_modules": TARGETS, "factor": 4},
                "glora": {"kind": "glora", "match_parameters": "lora", "target_modules": TARGETS},
                "full": {"kind": "full"},
            },
            "tuning": {"pictures": SUITE, "clips": SUITE | {"captions": "clips", "models": ["wan"]}},
            "tables": {},
            "finetuning": {},
        }
        models = {id: model for id, model in tiny_text["models"].items() if model["source"]["kind"] != "finetuned"}
        self.root = root
        self._pictures()
        self.graph = Graph(parse_study(tiny_text | own | {"models": models}, "test"), str(root / "results"))

    def _pictures(self) -> None:
        generator = np.random.default_rng(0)
        for folder in ("pictures", "clips"):
            (self.root / folder).mkdir()
        for number in range(12):
            width = 24 if number % 3 else 16
            levels = generator.integers(0, 256, (5, 16, width, 3), dtype=np.uint8)
            frames = [Image.fromarray(picture) for picture in levels]
            frames[0].save(self.root / "pictures" / f"{number}.png")
            frames[0].save(self.root / "clips" / f"{number}.png", save_all=True, append_images=frames[1:])
            for folder in ("pictures", "clips"):
                (self.root / folder / f"{number}.txt").write_text(f"picture {number % 5}")

    def build(self, stage: str, id: str, name: str | None = None, **changes: Any) -> Artifact:
        """A node, its parents first; under another name it is built again, or with a changed configuration."""
        inputs = {}
        for key, parent in self.graph.parents(stage, id).items():
            path = Path(parent) if isinstance(parent, str) else None
            if path and not path.exists():
                self.build(path.parts[-3], path.parts[-2])
            inputs[key] = [path] if path else [Path(file) for file in parent]
        program = importlib.import_module(STAGES[stage].module).build
        output = Path(self.graph.manifest(stage, name or id)).parent
        spec = self.graph.spec(stage, id)
        spec["config"] = {**spec["config"], **changes}
        return run(STAGES[stage], program, spec=spec, inputs=inputs, output=output)

    def model(self, name: str) -> Path:
        """The base pipeline."""
        return self.root / "results" / "generator" / name / "model"


@pytest.fixture(scope="module")
def study(tiny_text: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Study:
    with pytest.MonkeyPatch.context() as patch:
        # Autoencoders that have learned nothing code as well for these tests.
        patch.setattr(tiny, "_STEPS", 2)
        patch.setattr(tiny, "_FLOW_STEPS", 2)
        made = Study(tiny_text, tmp_path_factory.mktemp("tuning"))
        for name in FAMILIES:
            made.build("generator", name)
        return made


def inputs_of(name: str) -> dict[str, Any]:
    """What a transformer is told of one sample."""
    generator = torch.Generator().manual_seed(1)
    shape, width = ((1, 4, 8, 8), 64) if name == "sd3" else ((1, 4, 3, 8, 8), 32)
    inputs = {
        "hidden_states": torch.randn(shape, generator=generator),
        "encoder_hidden_states": torch.randn((1, 8, width), generator=generator),
        "timestep": torch.tensor([300.0]),
    }
    return inputs | ({"pooled_projections": torch.randn((1, 64), generator=generator)} if name == "sd3" else {})


@torch.inference_mode()
def output_of(transformer: Any, inputs: dict[str, Any]) -> torch.Tensor:
    return transformer.eval()(**inputs, return_dict=False)[0]


@pytest.mark.parametrize(("name", "suite"), [("sd3", "pictures"), ("wan", "clips")])
def test_what_is_published_is_what_diffusers_loads(study: Study, name: str, suite: str) -> None:
    lora, full = (study.build("tune", f"{name}.{suite}.{method}") for method in ("lora", "full"))
    inputs, base = inputs_of(name), FAMILIES[name].load_transformer(study.model(name))
    before = output_of(base, inputs)
    pipeline = PIPELINES[name].from_pretrained(study.model(name))
    pipeline.load_lora_weights(lora.directory / "lora")
    tuned = output_of(load_adapter(base, lora.directory / "adapter"), inputs)
    torch.testing.assert_close(output_of(pipeline.transformer, inputs), tuned)
    assert (tuned - before).abs().max() > 1e-3
    whole = TRANSFORMERS[name].from_pretrained(full.directory / "transformer")
    assert (output_of(whole, inputs) - before).abs().max() > 1e-3
    pipeline = PIPELINES[name].from_pretrained(study.model(name), transformer=whole)
    size = {"height": 16, "width": 16} | ({} if name == "sd3" else {"num_frames": 5})
    drawn = pipeline("picture 1", **size, num_inference_steps=2, output_type="np", max_sequence_length=8)[0]
    assert np.isfinite(drawn).all() and drawn.shape[-3:] == (16, 16, 3)
    for artifact in (lora, full):
        quality = artifact.json("training.json")
        items = pq.read_table(artifact.directory / "records" / "held_out.parquet")
        assert quality["held_out_loss"] == pytest.approx(np.mean(items["loss"].to_numpy()))
        assert quality["held_out_loss"] == pytest.approx(np.mean(list(quality["held_out_loss_by_time"].values())))
        assert quality["held_out_loss"] < quality["held_out_loss_before"]
        assert quality["sample_order_sha256"] == lora.json("training.json")["sample_order_sha256"]
        assert Image.open(artifact.directory / "records" / "previews.png").size[1] > 64
    assert quality["parameters_trainable"] == quality["parameters"] > lora.json("training.json")["parameters_trainable"]


class Killed(BaseException):
    """The end of a process that had no time to save anything."""


@pytest.mark.parametrize("way", ["told", "killed"])
def test_a_stopped_run_goes_on_to_the_same_weights(study: Study, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    whole = study.build("tune", "sd3.pictures.lora", "sd3.pictures.whole")
    take = CaptionDraws.__getitem__

    def stopping(draws: CaptionDraws, index: int) -> dict[str, Any]:
        if index == 3 * 4:
            if way == "killed":
                raise Killed
            os.kill(os.getpid(), signal.SIGTERM)
        return take(draws, index)

    # What is recomputed is the same.
    changes = {"activation_checkpointing": way == "killed"}
    with monkeypatch.context() as patch, pytest.raises(Interrupted if way == "told" else Killed):
        patch.setattr(CaptionDraws, "__getitem__", stopping)
        study.build("tune", "sd3.pictures.lora", f"sd3.pictures.{way}", **changes)
    again = study.build("tune", "sd3.pictures.lora", f"sd3.pictures.{way}", **changes)
    assert again.json("records/efficiency.json")["resumed_at_step"] in ((3, 4) if way == "told" else (2,))
    for name in ("adapter/adapter_model.safetensors", "lora/pytorch_lora_weights.safetensors"):
        assert (again.directory / name).read_bytes() == (whole.directory / name).read_bytes()
    assert again.json("training.json")["held_out_loss"] == whole.json("training.json")["held_out_loss"]


def losses_of(artifact: Artifact) -> list[float]:
    """The loss curve, and the held-out losses."""
    quality = artifact.json("training.json")
    curve = [point["loss"] for point in artifact.json("records/loss_curve.json")["curve"]]
    return [*curve, quality["held_out_loss_before"], quality["held_out_loss"]]


@pytest.mark.usefixtures("forked_ranks")
def test_two_ranks_learn_what_one_learns_and_bfloat16_loses_little(study: Study) -> None:
    whole = study.build("tune", "sd3.pictures.lora", "sd3.pictures.whole")
    ranks = study.build(
        "tune", "sd3.pictures.lora", "sd3.pictures.ranks", parallel={"strategy": "ddp", "devices": 2, "nodes": 1}
    )
    assert ranks.json("records/efficiency.json")["world_size"] == 2
    # The same sums in another order.
    assert losses_of(ranks) == pytest.approx(losses_of(whole), rel=2e-4)
    half = study.build("tune", "sd3.pictures.lora", "sd3.pictures.half", dtype="bfloat16")
    assert losses_of(half) != losses_of(whole) and losses_of(half) == pytest.approx(losses_of(whole), rel=0.02)
    adapter = load_file(half.directory / "adapter" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in adapter.values()} == {torch.float32}


@pytest.mark.parametrize("method", ["lokr", "glora"])
def test_a_merged_update_is_that_of_the_adapter(study: Study, method: str) -> None:
    tuned = study.build("tune", f"sd3.pictures.{method}")
    quality, inputs = tuned.json("training.json"), inputs_of("sd3")
    assert quality["parameters_trainable"] == pytest.approx(quality["parameters_matched"], rel=0.3)
    assert quality["held_out_loss"] < quality["held_out_loss_before"]
    base = FAMILIES["sd3"].load_transformer(study.model("sd3"))
    before = output_of(base, inputs)
    found = output_of(load_adapter(base, tuned.directory / "adapter"), inputs)
    merged = SD3Transformer2DModel.from_pretrained(tuned.directory / "transformer")
    torch.testing.assert_close(output_of(merged, inputs), found, rtol=1e-4, atol=1e-5)
    assert (found - before).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("name", "method"), [("sd3", "lora"), ("wan", "loha"), ("sd3", "lokr"), ("wan", "glora"), ("sd3", "full")]
)
def test_flops_are_those_of_a_step_whatever_its_micro_batch(study: Study, name: str, method: str) -> None:
    transformer = FAMILIES[name].load_transformer(study.model(name))
    model = FlowTransformer(
        study.graph.study.methods[method].apply(transformer, f"methods.{method}").model, FAMILIES[name]
    )
    one = inputs_of(name)
    one = {"latents": one.pop("hidden_states"), "times": one.pop("timestep") / 1000, **one}
    one["noise"] = torch.zeros_like(one["latents"])
    for micro, passes in ((3, 2), (6, 1)):
        batch = {key: value.repeat(micro, *[1] * (value.ndim - 1)) for key, value in one.items()}
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            for _ in range(passes):
                model(**batch)["loss"].backward()
        assert step_flops(model, one, 6, passes) == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_every_frame_of_a_clip_is_encoded(study: Study) -> None:
    family, directory = FAMILIES["wan"], study.model("wan")
    _, step = family.size_step(directory)
    coder = family.load_autoencoder(directory, "cpu")
    pixels = torch.zeros(1, 1 + step, 3, 16, 16, dtype=torch.uint8)
    changed = pixels.clone()
    changed[:, -1] = 255
    with torch.inference_mode():
        latents, others = family.encode(coder, pixels), family.encode(coder, changed)
        assert (latents - others).abs().max() > 1e-3
        assert family.decode(coder, latents).shape == pixels.shape


def test_a_killed_encoding_goes_on_where_it_was(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = study.build("encode", "wan.clips")
    family = type(FAMILIES["wan"])
    encode, encode_texts, calls = family.encode, family.encode_texts, []

    def counting(*arguments: Any) -> Any:
        calls.append("samples")
        if len(calls) == 3:
            raise Killed
        return encode(*arguments)

    def texts(*arguments: Any) -> Any:
        calls.append("texts")
        return encode_texts(*arguments)

    monkeypatch.setattr(growing, "KEPT_EVERY_S", 0)
    monkeypatch.setattr(family, "encode", counting)
    monkeypatch.setattr(family, "encode_texts", texts)
    with pytest.raises(Killed):
        study.build("encode", "wan.clips", "wan.again")
    work = study.root / "results" / ".scratch" / "encode" / "wan.again" / "work"
    # What was written after the last note is not whole.
    with open(work / "train.latents.bin", "ab") as file:
        file.write(b"half")
    assert calls == ["texts", "samples", "samples"]
    again = study.build("encode", "wan.clips", "wan.again")
    batches = [-(-count // 4) for count in whole.json("encodings.json")["splits"].values()]
    assert calls[3:] == ["samples"] * (sum(batches) - 1)
    assert again.manifest.payload == whole.manifest.payload


def test_what_does_not_fit_a_pipeline_is_a_sentence(tmp_path: Path) -> None:
    from effllm.data.encodings.encode import _require_fit
    from effllm.results.data import CaptionsSummary
    from effllm.results.model import GeneratorSummary

    captions = {"seen": 1, "dropped": {}, "unusable": [], "splits": {}, "shapes": {"16x20": 1}, "frames": 4}
    generator = {"family": "wan", "parameters": {}, "side_step": 8, "frame_step": 2, "source": {}}

    config = {"patch_size": [1, 2, 2], "rope_max_seq_len": 4}
    for part, content in (("transformer", config), ("vae", {"dim_mult": [1, 2], "temperal_downsample": [True]})):
        (tmp_path / "model" / part).mkdir(parents=True)
        (tmp_path / "model" / part / "config.json").write_text(json.dumps(content))

    class Named:
        def __init__(self, id: str):
            self.manifest = self
            self.id = id
            self.directory = tmp_path

    class Job:
        inputs = {"captions": Named("clips"), "generator": Named("wan")}  # noqa: RUF012

    def fit(name: str, **changes: Any) -> None:
        pipeline = GeneratorSummary(**generator)
        _require_fit(Job, FAMILIES[name], pipeline, CaptionsSummary(**captions | changes))  # type: ignore[arg-type]

    with pytest.raises(UserError, match=r"captions.clips.shapes: the sides of 16x20 are no multiples of the 8"):
        fit("wan")
    with pytest.raises(UserError, match=r"frames: 4 less the first one is no multiple of the 2 .*write 5"):
        fit("wan", shapes={"16x16": 1})
    with pytest.raises(UserError, match=r"frames: 4 are a clip"):
        fit("sd3", shapes={"16x16": 1})
    fit("wan", shapes={"16x16": 1}, frames=13)
    with pytest.raises(UserError, match=r"frames: 17 are more than the 13 whose places wan knows: take fewer"):
        fit("wan", shapes={"16x16": 1}, frames=17)
    with pytest.raises(UserError, match=r"shapes: 16x24 is larger than the 16 pixels a side whose places wan knows"):
        fit("wan", shapes={"16x24": 1}, frames=1)


def test_a_step_has_one_shape_and_samples_come_again_after_all_others() -> None:
    shapes = [(4, 8, 8)] * 10 + [(4, 8, 4)] * 5
    order = shaped_order(shapes, per_step=4, steps=60, seed=3).reshape(60, 4)
    assert (order == shaped_order(shapes, per_step=4, steps=60, seed=3).reshape(60, 4)).all()
    square = [step for step in order if shapes[step[0]] == (4, 8, 8)]
    assert 30 <= len(square) <= 50
    for members, steps in ((range(10), square), (range(10, 15), [step for step in order if step[0] >= 10])):
        stream = np.concatenate(steps)
        for start in range(0, len(stream) // len(members) * len(members), len(members)):
            assert sorted(stream[start : start + len(members)]) == list(members)


def test_times_are_shifted_as_for_higher_resolutions() -> None:
    # Esser et al. (2024), equation 23, with sqrt(m / n) = 3.
    for time in (0.0, 0.25, 0.5, 1.0):
        assert shifted(time, 3.0) == pytest.approx(3 * time / (1 + 2 * time))
    assert shifted(0.4, 1.0) == pytest.approx(0.4)


def test_flops_are_those_of_the_published_shape() -> None:
    """Stable Diffusion 3.5 Medium with 6 of its 24 layers, 512 pixels and 333 tokens, by a formula over layers."""
    pixels, tokens, width, layers, dual = 32 * 32, 333, 1536, 6, 3
    with torch.device("meta"):
        transformer = SD3Transformer2DModel(
            sample_size=128,
            num_layers=layers,
            attention_head_dim=64,
            num_attention_heads=24,
            joint_attention_dim=4096,
            caption_projection_dim=width,
            pooled_projection_dim=2048,
            pos_embed_max_size=384,
            dual_attention_layers=tuple(range(dual)),
            qk_norm="rms_norm",
        )
    sample = {
        "latents": torch.empty(1, 16, 64, 64, device="meta"),
        "noise": torch.empty(1, 16, 64, 64, device="meta"),
        "times": torch.empty(1, device="meta"),
        "encoder_hidden_states": torch.empty(1, tokens, 4096, device="meta"),
        "pooled_projections": torch.empty(1, 2048, device="meta"),
    }
    joint = layers * pixels * 12 * width**2 + (layers - 1) * tokens * 12 * width**2 + tokens * 3 * width**2
    products = joint + dual * pixels * 4 * width**2 + tokens * 4096 * width + 2 * pixels * 64 * width
    scores = layers * 2 * (pixels + tokens) ** 2 * width + dual * 2 * pixels**2 * width
    transformer.requires_grad_(True)
    model = FlowTransformer(transformer, FAMILIES["sd3"])
    assert step_flops(model, sample, 3, 1) == pytest.approx(3 * 6 * (products + scores), rel=0.02)
    transformer.requires_grad_(False)
    lora = METHODS["lora"].model_validate({"kind": "lora", "rank": 16, "alpha": 16, "target_modules": TARGETS})
    model = FlowTransformer(lora.apply(transformer, "methods.lora").model, FAMILIES["sd3"])
    added = lora.added_products(model.transformer)
    rows = sum(products * pixels for products in added.values())
    # Fixed weights have no gradient of their own, and nothing needs that of what goes into the first ones.
    first = tokens * 4096 * width + pixels * 64 * width + 3 * (2 * pixels + tokens) * width**2
    assert step_flops(model, sample, 1, 1) == pytest.approx(4 * products - 2 * first + 6 * (scores + rows), rel=0.01)
    transformer = model.transformer.unload()
    loha = METHODS["loha"].model_validate({"kind": "loha", "rank": 16, "target_modules": TARGETS})
    model = FlowTransformer(loha.apply(transformer, "methods.loha").model, FAMILIES["sd3"])
    # Its update is formed once in each pass, and taken by one product more a row.
    more = step_flops(model, sample, 8, 2) - step_flops(model, sample, 8, 1)
    assert more == pytest.approx(loha.pass_flops(model.transformer), rel=0.02)
