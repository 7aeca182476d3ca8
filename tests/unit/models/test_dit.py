"""Diffusion transformers: published sizes, FLOPs as torch counts them, outputs of plain torch, checkpoints."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel

from effllm.diffusion.chain import DdpmObjective
from effllm.diffusion.settings import Ddpm
from effllm.models.dit import DiT, DiTConfig, costs
from effllm.models.dit.architecture import DiTArchitecture
from tests.conftest import REPOSITORY

from .conftest import ATTENTIONS
from .plain_dit import plain

VARIANTS = [(attention, "gelu") for attention in ATTENTIONS] + [("mha", "moe"), ("gqa", "swiglu")]
# Layers, width, heads, patch; parameters in millions with the fixed positions among them, and multiply-adds in billions
# as published (arXiv 2212.09748, table 4 and section 4).
PUBLISHED = {
    "XL/2": ((28, 1152, 16, 2), 675, 118.64),
    "L/8": ((24, 1024, 16, 8), 459, 5.01),
    "B/4": ((12, 768, 12, 4), 130, 5.56),
}


def small(attention: str = "mha", feed_forward: str = "gelu", **changes) -> DiT:
    """16 patches of 3 channels, with no weight left at zero."""
    keys = {"image_size": 8, "channels": 3, "patch_size": 2, "classes": 5, "hidden_size": 32, "num_hidden_layers": 2}
    torch.manual_seed(0)
    config = DiTConfig(**(keys | {"num_attention_heads": 4} | changes), attention=attention, feed_forward=feed_forward)
    model = DiT(config).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    return model


def batch(size: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(size, 3, 8, 8, generator=generator), torch.tensor([0.0, 431.0, 999.0])[:size], torch.arange(size)


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_and_costs_are_the_published_ones(name):
    (layers, width, heads, patch), millions, billions = PUBLISHED[name]
    config = DiTConfig(hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, patch_size=patch)
    fixed = (32 // patch) ** 2 * width
    assert round((costs.parameter_count(config).total + fixed) / 1e6) == millions
    # Published rounded, and without what timestep and label cost.
    assert costs.forward_flops(config) / 2e9 == pytest.approx(billions, rel=2e-3)


@pytest.mark.parametrize(("attention", "feed_forward"), VARIANTS)
def test_parameters_and_flops_are_those_of_the_model(attention, feed_forward):
    # On CPUs values narrower than keys are padded, which torch counts.
    model = small(attention, feed_forward, **({"v_head_dim": 12} if attention == "mla" else {}))
    assert costs.parameter_count(model.config).total == sum(weight.numel() for weight in model.parameters())
    images, times, labels = batch(1)
    # SDPA's fused kernel for CPUs is not among what torch counts.
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(images, times, labels)
    assert counter.get_total_flops() == costs.forward_flops(model.config)


OVERLAPPING = {"nsa_compression_block": 6, "nsa_compression_stride": 2, "nsa_selection_block": 4}


@pytest.mark.parametrize("changes", [OVERLAPPING, {"nsa_compression_block": 16, "nsa_selection_block": 16}])
def test_flops_of_sparse_attention_are_those_of_its_blocks(changes):
    model, (images, times, labels) = small("nsa", **changes), batch(1)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(images, times, labels)
    assert counter.get_total_flops() == costs.forward_flops(model.config)


@torch.no_grad()
@pytest.mark.parametrize("changes", [{"moe_intermediate_size": 20}, {"hidden_size": 36}])
def test_experts_may_be_of_widths_that_no_grouped_kernel_takes(changes):
    model, arguments = small(feed_forward="moe", num_experts=2, **changes), batch()
    with torch.autocast("cpu", torch.bfloat16):
        half = model(*arguments)
    whole = model(*arguments)
    assert (half - whole).norm() < 0.1 * whole.norm()


@torch.no_grad()
def test_the_model_is_the_papers_in_plain_torch():
    model, arguments = small(), batch()
    expected = plain(dict(model.named_parameters()), model.config.to_dict(), *arguments)
    torch.testing.assert_close(model(*arguments), expected, rtol=1e-4, atol=1e-4)


ELSEWHERE = """
import json, sys
from pathlib import Path
from safetensors.torch import load_file, save_file

sys.modules["effllm"] = None  # An import of it fails.
from plain_dit import plain

dense, mixed, inputs, outputs = map(Path, sys.argv[1:])
arguments = [load_file(inputs)[name] for name in ("images", "times", "labels")]
config = json.loads((dense / "config.json").read_text())
found = {"dense": plain(load_file(dense / "model.safetensors"), config, *arguments)}
assert "transformers" not in sys.modules

del sys.modules["effllm"]
import effllm.models.dit.model
from transformers import AutoModel

model = AutoModel.from_pretrained(mixed)
found["mixed"] = model(*arguments).detach()
save_file({name: tensor.contiguous() for name, tensor in found.items()}, outputs)
"""


@torch.no_grad()
def test_a_checkpoint_runs_without_this_package_or_by_one_import_of_it(tmp_path):
    dense, mixed = small(), small("mla", "moe")
    dense.save_pretrained(tmp_path / "dense")
    mixed.save_pretrained(tmp_path / "mixed")
    arguments = batch()
    save_file(dict(zip(("images", "times", "labels"), arguments, strict=True)), tmp_path / "inputs")
    paths = [str(tmp_path / name) for name in ("dense", "mixed", "inputs", "outputs")]
    # The package is found where it is, and nothing of the tests but one file.
    path = os.pathsep.join((str(Path(__file__).parent), str(REPOSITORY)))
    environment = os.environ | {"PYTHONPATH": path}
    command = [sys.executable, "-c", ELSEWHERE, *paths]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    found = load_file(tmp_path / "outputs")
    torch.testing.assert_close(found["dense"], dense(*arguments), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found["mixed"], mixed(*arguments))


@torch.no_grad()
def test_a_new_model_is_the_identity_and_predicts_nothing():
    model = DiT(small().config)
    assert model(*batch()).abs().max() == 0
    hidden = torch.randn(2, 16, 32)
    from effllm.models.decoder.attention.core import Sequence

    sequence = Sequence(0, torch.arange(16)[None], causal=False)
    assert torch.equal(model.layers[0](hidden, torch.randn(2, 32), sequence)[0], hidden)
    assert model.time_up_proj.weight.std() == pytest.approx(0.02, rel=0.1)
    bound = math.sqrt(6 / (32 + 128))
    assert model.layers[0].mlp.up_proj.weight.abs().max() == pytest.approx(bound, rel=0.02)


def test_a_training_step_compiles_without_graph_breaks():
    model, (images, times, labels) = small(num_hidden_layers=1).train(), batch()
    keys = {"noise": torch.randn_like(images), "objective": DdpmObjective(Ddpm(kind="ddpm"), learned_sigma=True)}
    torch._dynamo.reset()
    # The first brings the chain's numbers to the device.
    losses = [
        step(images, times.long(), labels, **keys)["loss"]
        for step in (model, torch.compile(model, backend="eager", fullgraph=True))
    ]
    torch._dynamo.reset()
    gradients = [torch.autograd.grad(loss, list(model.parameters())) for loss in losses]
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("attention", "feed_forward"), VARIANTS)
def test_checkpoints_reload_and_every_weight_is_trained(attention, feed_forward, tmp_path):
    model, arguments = small(attention, feed_forward), batch()
    model.save_pretrained(tmp_path)
    reloaded, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    output = model(*arguments)
    torch.testing.assert_close(reloaded(*arguments), output, rtol=0, atol=0)
    output.square().sum().backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()] == []


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"patch_size": 3}, "image_size 8 is not a multiple of patch_size 3"),
        (
            {"attention": "nsa", "nsa_compression_block": 32, "nsa_compression_stride": 4},
            "nsa_compression_block 32 exceeds the 16 patches",
        ),
        ({"attention": "nsa", "nsa_local_blocks": 2}, "nsa_selected_blocks 2 is less than the 3 blocks"),
        ({"num_key_value_heads": 2}, "attention mha has num_key_value_heads 4, not 2"),
    ],
)
def test_shapes_that_do_not_fit_are_refused_with_the_key(changes, sentence):
    keys = {"image_size": 8, "channels": 1, "patch_size": 2, "classes": 10, "hidden_size": 32, "num_hidden_layers": 1}
    with pytest.raises(ValidationError, match=sentence):
        DiTArchitecture(**({"model_type": "dit", "num_attention_heads": 4} | keys | changes))


def test_specs_hold_the_keys_of_the_parts_that_are_used():
    keys = {"image_size": 8, "channels": 1, "patch_size": 2, "classes": 10, "hidden_size": 32, "num_hidden_layers": 1}
    plain_keys = DiTArchitecture(model_type="dit", num_attention_heads=4, **keys).plain()
    assert not [key for key in plain_keys if key.startswith(("nsa_", "qk_", "moe_", "num_experts", "router_"))]
    sparse = DiTArchitecture(model_type="dit", num_attention_heads=4, attention="nsa", **keys)
    assert sparse.plain().keys() - plain_keys.keys() == {key for key in DiTArchitecture.model_fields if "nsa" in key}
    assert DiTConfig(**sparse.settings()).nsa_compression_block == 4
