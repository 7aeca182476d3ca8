"""The decoder on a GPU: other kernels, the same function."""

import pytest
import torch

from .conftest import ATTENTIONS, POSITIONS

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("feed_forward", ["swiglu", "moe"])
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_loss_and_gradients_on_cuda_are_those_on_the_cpu(attention, position, feed_forward, build, tokens):
    results = []
    for device in ("cpu", "cuda"):
        model = build(attention=attention, position=position, feed_forward=feed_forward).to(device).train()
        loss = model(tokens.to(device), labels=tokens.to(device)).loss
        loss.backward()
        results.append((loss.detach().cpu(), [weight.grad.cpu() for weight in model.parameters()]))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("feed_forward", ["swiglu", "moe"])
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_mixed_precision_trains_and_bfloat16_generates(attention, feed_forward, build, tokens):
    # The grouped product wants rows of 16 bytes.
    model = build(attention=attention, feed_forward=feed_forward, moe_intermediate_size=32).cuda().train()
    tokens = tokens.cuda()
    exact = model(tokens, labels=tokens).loss
    with torch.autocast("cuda", torch.bfloat16):
        loss = model(tokens, labels=tokens).loss
    loss.backward()
    assert loss.item() == pytest.approx(exact.item(), rel=0.05)
    assert all(weight.grad.isfinite().all() for weight in model.parameters())
    generated = model.bfloat16().eval().generate(tokens, max_new_tokens=4, do_sample=False)
    assert generated.shape == (2, 37)
