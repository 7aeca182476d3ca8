"""The decoder against Transformers' own classes with the same weights, and checkpoints without this package."""

import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, DeepseekV3ForCausalLM, Qwen2ForCausalLM, Qwen2MoeForCausalLM

from effllm.errors import UserError
from effllm.models.decoder import EffForCausalLM
from effllm.models.decoder.export import export, to_transformers
from effllm.models.decoder.feed_forward.moe_layer import load_balancing_loss
from effllm.models.decoder.loss import next_token_loss

from .conftest import small_config

KNOWN = [
    ("mha", "swiglu", Qwen2ForCausalLM),
    ("gqa", "swiglu", Qwen2ForCausalLM),
    ("mqa", "swiglu", Qwen2ForCausalLM),
    ("mla", "swiglu", DeepseekV3ForCausalLM),
    ("gqa", "moe", Qwen2MoeForCausalLM),
    ("mha", "moe", Qwen2MoeForCausalLM),
]
LOGITS = {"rtol": 0, "atol": 1e-4}


@pytest.fixture(params=KNOWN, ids=[f"{attention}-{feed_forward}" for attention, feed_forward, _ in KNOWN])
def pair(request, build):
    """Our model and Transformers' with the same weights, biases and norms not left at their initial values."""
    attention, feed_forward, reference = request.param
    ours = build(attention=attention, feed_forward=feed_forward)
    with torch.no_grad():
        for name, weight in ours.named_parameters():
            if name.endswith("bias") or "norm" in name:
                weight.add_(torch.randn_like(weight) * 0.3)
    theirs = to_transformers(ours)
    assert type(theirs) is reference
    return ours, theirs


@torch.no_grad()
def test_same_weights_give_the_same_logits(pair, tokens):
    ours, theirs = pair
    mask = torch.ones_like(tokens)
    mask[0, :5] = 0
    torch.testing.assert_close(ours(tokens).logits, theirs(tokens).logits, **LOGITS)
    padded = [model(tokens, attention_mask=mask).logits[mask.bool()] for model in pair]
    torch.testing.assert_close(*padded, **LOGITS)


def test_same_weights_give_the_same_loss_and_gradients(pair, tokens):
    gradients, losses = [], []
    for model in pair:
        # Transformers adds the balancing loss where the routers' logits are asked for.
        asked = {"output_router_logits": True} if model.config.model_type == "qwen2_moe" else {}
        loss = model.train()(tokens, labels=tokens, num_items_in_batch=torch.tensor(64), **asked).loss
        loss.backward()
        losses.append(loss.detach())
        named = dict(model.named_parameters())
        gradients.append({name: named[name].grad for name, _ in pair[0].named_parameters()})
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@torch.no_grad()
def test_exported_checkpoints_load_without_this_package(build, tokens, tmp_path):
    torch.save(tokens, tmp_path / "tokens.pt")
    models = {f"{attention}-{ff}": build(attention=attention, feed_forward=ff) for attention, ff, _ in KNOWN}
    for name, model in models.items():
        export(model, tmp_path / name)
    program = (
        "import sys, torch; from transformers import AutoModelForCausalLM\n"
        "tokens = torch.load('tokens.pt')\n"
        "for name in sys.argv[1:]:\n"
        "    model, info = AutoModelForCausalLM.from_pretrained(name, output_loading_info=True)\n"
        "    assert not info['missing_keys'] and not info['unexpected_keys'], info\n"
        "    torch.save(model(tokens).logits, f'{name}/logits.pt')\n"
        "assert not any(name.startswith('effllm') for name in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program, *models], check=True, cwd=tmp_path)
    for name, model in models.items():
        torch.testing.assert_close(torch.load(tmp_path / name / "logits.pt"), model(tokens).logits, **LOGITS)


@torch.no_grad()
def test_routing_is_that_of_qwen2_moe(build, tokens):
    ours = build(feed_forward="moe")
    theirs = to_transformers(ours)
    routers = [layer.mlp.gate for layer in theirs.model.layers]
    seen = []
    for router in routers:
        router.register_forward_hook(lambda _, __, output: seen.append(output))
    theirs(tokens)
    logits = ours(tokens, output_router_logits=True).router_logits
    for ours_logits, (their_logits, weights, chosen) in zip(logits, seen, strict=True):
        torch.testing.assert_close(ours_logits, their_logits, **LOGITS)
        values, indices = ours_logits.softmax(-1).topk(2, dim=-1)
        assert torch.equal(indices, chosen)
        torch.testing.assert_close(values / values.sum(-1, keepdim=True), weights, **LOGITS)


@torch.no_grad()
def test_the_balancing_loss_is_that_of_qwen2_moe_with_padding_left_out(build, tokens):
    ours = build(feed_forward="moe")
    theirs = to_transformers(ours)
    mask = torch.ones_like(tokens)
    mask[1, :9] = 0
    outputs = [model(tokens, attention_mask=mask, output_router_logits=True) for model in (ours, theirs)]
    torch.testing.assert_close(outputs[0].aux_loss, outputs[1].aux_loss)
    assert outputs[0].aux_loss != ours(tokens, output_router_logits=True).aux_loss


def test_the_balancing_loss_is_k_when_balanced_and_grows_when_not():
    balanced = torch.eye(4).repeat(8, 1) * 50 + torch.eye(4).roll(1, 0).repeat(8, 1) * 49.9
    crowded = torch.tensor([[50.0, 49.9, 0, 0]]).repeat(32, 1)
    assert load_balancing_loss((balanced,), 2).item() == pytest.approx(2, rel=1e-3)
    assert load_balancing_loss((crowded,), 2).item() == pytest.approx(4, rel=1e-3)


def test_accumulated_micro_batches_give_the_gradient_of_the_balancing_loss_once(build, tokens):
    """Two halves with the whole batch's token count: each adds its half of the mean auxiliary loss."""
    model = build(feed_forward="moe", router_aux_loss_coef=1.0)
    with torch.no_grad():
        parts = [model(half, labels=half, num_items_in_batch=64) for half in tokens.split(1)]
        plain = [model.loss_function(p.logits, half, 97) for p, half in zip(parts, tokens.split(1), strict=True)]
    auxiliary = sum(part.loss for part in parts) - sum(plain) / 2
    assert auxiliary.item() == pytest.approx(sum(part.aux_loss for part in parts).item() / 2, rel=1e-5)


@pytest.mark.parametrize("items", [None, 50])
@pytest.mark.parametrize("scale", [1.0, 200.0])
@pytest.mark.parametrize("rows_per_chunk", [5, 1000])
def test_the_loss_and_its_gradient_are_those_of_cross_entropy(items, scale, rows_per_chunk, monkeypatch):
    """Also where probabilities underflow, where labels are left out, and where rows go through in several chunks."""
    monkeypatch.setattr("effllm.models.decoder.loss._CHUNK_ELEMENTS", rows_per_chunk * 50)
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(2, 9, 50, generator=generator, dtype=torch.double) * scale).requires_grad_()
    labels = torch.randint(0, 50, (2, 9), generator=generator)
    labels[0, :4] = -100
    loss = next_token_loss(logits, labels, items)
    (gradient,) = torch.autograd.grad(3 * loss, logits)
    shifted, targets = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    total = torch.nn.functional.cross_entropy(shifted, targets, reduction="sum")
    expected = total / ((targets != -100).sum() if items is None else items)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(3 * expected, logits)[0])


@torch.no_grad()
def test_grouped_products_equal_sorted_segments(build, tokens):
    """bfloat16 goes through the grouped kernel; each expert's own product is the reference."""
    layer = build(feed_forward="moe").model.layers[0].mlp
    x = torch.randn(2, 33, 32, generator=torch.Generator().manual_seed(2)).bfloat16()
    exact, _ = layer.float()(x.float())
    grouped, _ = layer.bfloat16()(x)
    assert (grouped.float() - exact).abs().max() < 0.02 * exact.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("attention", ["gqa", "mla", "nsa"])
def test_our_own_checkpoint_loads_through_the_auto_class(attention, build, tokens, tmp_path):
    model = build(attention=attention, position="relative", feed_forward="moe")
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is EffForCausalLM
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)


@pytest.mark.parametrize(
    "changes", [{"attention": "nsa"}, {"position": "learned"}, {"attention": "mla", "feed_forward": "moe"}]
)
def test_a_decoder_that_transformers_does_not_know_is_not_exported(changes):
    with pytest.raises(UserError, match="has no format in Transformers"):
        to_transformers(EffForCausalLM(small_config(**changes)))
