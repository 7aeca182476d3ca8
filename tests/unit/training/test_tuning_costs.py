"""Formulas for transformers of images and videos: their layers, parameters and FLOPs, against diffusers and torch."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel, WanTransformer3DModel
from torch import nn

from effllm.models.generators import FAMILIES
from effllm.models.generators.shapes import TransformerShape, shape_of_source
from effllm.planning.plan import plan_of
from effllm.planning.reference.rates import rows
from effllm.stages.graph import Graph
from effllm.stages.training import training_state_b
from effllm.study import parse_study
from effllm.study.inheritance import read_study
from effllm.training.flow_transformer import FlowTransformer, step_flops
from effllm.training.methods import METHODS
from effllm.training.tuning_costs import TuningCosts
from effllm.training.tuning_settings import TuningRun
from tests.conftest import REPOSITORY

REPOS = {"sd3": "stabilityai/stable-diffusion-3.5-medium", "wan": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"}
CLASSES = {"sd3": SD3Transformer2DModel, "wan": WanTransformer3DModel}
TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
H100 = "NVIDIA H100 80GB HBM3"


def published(family: str, **changes: Any) -> TransformerShape:
    shape = shape_of_source({"kind": "hub", "repo": REPOS[family]})
    return TransformerShape(shape.family, {**shape.config, **changes})


def made(shape: TransformerShape) -> nn.Module:
    config = dict(shape.config)
    if shape.family.name == "sd3":
        config |= {"caption_projection_dim": 1536, "pos_embed_max_size": 384}
    with torch.device("meta"):
        return CLASSES[shape.family.name](**config)


@pytest.mark.parametrize(("family", "parameters"), [("sd3", 2.2432e9), ("wan", 1.4190e9)])
def test_layers_are_those_of_diffusers(family: str, parameters: float) -> None:
    shape = published(family)
    transformer = made(shape)
    layers = {name: layer for name, layer in transformer.named_modules() if isinstance(layer, nn.Linear)}
    assert {name: (layer.inputs, layer.outputs) for name, layer in shape.layers().items()} == {
        name: (layer.in_features, layer.out_features) for name, layer in layers.items()
    }
    assert all(layer.bias is not None for layer in layers.values())
    assert shape.parameters() == sum(parameter.numel() for parameter in transformer.parameters())
    assert shape.parameters() == pytest.approx(parameters, rel=1e-4)


@pytest.mark.parametrize(
    ("family", "kind"), [("sd3", "lora"), ("sd3", "glora"), ("sd3", "full"), ("wan", "loha"), ("wan", "lokr")]
)
def test_flops_and_trained_parameters_are_those_of_a_step(family: str, kind: str) -> None:
    changes = {"num_layers": 2} | ({"dual_attention_layers": [0]} if family == "sd3" else {})
    shape = published(family, **changes)
    own = {"lora": {"rank": 16, "alpha": 16}, "full": {}}
    matched = {"match_parameters": {"rank": 16, "target_modules": TARGETS}}
    config = own.get(kind, matched) | ({"factor": 4} if kind == "lokr" else {})
    method = METHODS[kind].model_validate(
        {"kind": kind, **config} | ({} if kind == "full" else {"target_modules": TARGETS})
    )
    size, frames, tokens = ((512, 512), 1, 256) if family == "sd3" else ((416, 240), 9, 512)
    patches, texts = shape.family.rows(shape.config, size, frames, tokens)
    latents = (16, size[1] // 8, size[0] // 8) if family == "sd3" else (16, 3, size[1] // 8, size[0] // 8)
    transformer = made(shape).requires_grad_(False)
    costs = TuningCosts(method, shape, patches, texts)
    model = FlowTransformer(method.apply(transformer, "methods.m").model, FAMILIES[family])
    assert costs.trained == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert shape.family.patches(transformer, latents) == patches
    sample = {name: torch.empty(1, *latents, device="meta") for name in ("latents", "noise")}
    sample |= {"times": torch.empty(1, device="meta")}
    sample["encoder_hidden_states"] = torch.empty(1, texts, 4096, device="meta")
    if family == "sd3":
        sample["pooled_projections"] = torch.empty(1, 2048, device="meta")
    # Of the first layers of few, fixed ones have no gradient at all, which formulas leave out.
    assert costs.step_flops(4, 2) == pytest.approx(step_flops(model, sample, 4, 2), rel=0.02 if kind == "full" else 0.2)


@pytest.mark.parametrize("name", ["sd3.5-medium", "wan-1.3b"])
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_memory_and_rates_are_those_of_the_committed_results(name: str, kind: str) -> None:
    measured = json.loads((REPOSITORY / "docs/results/h100/image-models.json").read_text())["variants"]
    row = measured[f"{name} {kind} stage"]
    shape = published("sd3" if name.startswith("sd3") else "wan")
    size, frames, tokens = ((1024, 1024), 1, 256) if name.startswith("sd3") else ((832, 480), 17, 512)
    own = {"kind": "lora", "rank": 16, "alpha": 16, "target_modules": TARGETS} if kind == "lora" else {"kind": kind}
    run = TuningRun.model_validate(
        {
            "method": own,
            "learning_rate": 1e-4,
            "micro_batch_size": 1,
            "parallel": {},
            "samples_per_step": row["samples_per_step"],
            "max_steps": 1,
            "checkpoint_every_steps": None,
        }
    )
    costs = TuningCosts(run.method, shape, *shape.family.rows(shape.config, size, frames, tokens))
    assert costs.trained == row["parameters_trainable"]
    steps = row["samples_per_step"]
    assert costs.step_flops(steps, steps) == pytest.approx(row["flops_per_step"], rel=0.02)
    states_b = training_state_b(costs.trained, 0 if kind == "full" else shape.parameters(), run.parallel, run.dtype)
    assert states_b + costs.kept_b(run) == pytest.approx(1e9 * row["allocator_peak_gb"], rel=0.03)
    (rate,) = (each for each in rows("tune") if each["run"] == f"{name}.{kind}")
    assert float(rate["mfu"]) == pytest.approx(row["mfu"], rel=1e-5)
    assert float(rate["power_w"]) == pytest.approx(row["power_avg_w"], rel=1e-5)


def test_table_13_at_the_papers_size_is_planned_by_formulas(tmp_path: Path) -> None:
    raw, preset = (read_study(REPOSITORY / "config" / path) for path in ("paper.yaml", "presets/image-models.yaml"))
    source = {"kind": "hub_files", "repo": "owner/clips", "revision": "0" * 40}
    captions = {"source": source, "shapes": ["832x480"], "held_out_fraction": 0.1}
    own = {"sargent": captions | {"shapes": ["512x512", "1024x1024"]}, "disney": captions | {"frames": 17}}
    methods = raw["methods"] | preset["methods"]
    graph = Graph(parse_study(raw | preset | {"methods": methods, "captions": own}, "test"), str(tmp_path))
    nodes = {node.name: node for node in plan_of(graph, ["table13"], device=H100).nodes}
    full, lora = nodes["tune/sd3.5-medium.sargent.image-full"], nodes["tune/wan-1.3b.disney.image-lora"]
    # Weights, gradients and moments in float32, and a copy in 16 bits.
    assert full.memory_least_b == pytest.approx(18 * 2.2432e9, rel=1e-3)
    assert lora.disk_b.value == 2 * 4 * 30 * 8 * 16 * 2 * 1536
    # 2,000 steps of 16 samples of four thirds of the FLOPs, at the share of the peak that was measured.
    flops = 2000 * 189_666_263_826_432 * 8 * 4 / 3
    tuned = nodes["tune/wan-1.3b.disney.image-full"].wall_s
    assert tuned.basis == "reference" and tuned.value == pytest.approx(flops / (989e12 * 0.232232), rel=0.05)
    assert nodes["encode/wan-1.3b.disney"].memory_least_b == 2 * 5_680_910_336
