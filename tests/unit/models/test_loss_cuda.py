"""The fused loss against cross-entropy in float32."""

import pytest
import torch
from torch.nn import functional as F

from effllm.models.decoder.kernels.choice import choosing
from effllm.models.decoder.loss import IGNORED, next_token_loss

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("is_compiled", [False, True])
@pytest.mark.parametrize(("batch", "length", "words"), [(2, 33, 151_936), (1, 7, 8192), (3, 5, 50), (1, 9, 8193)])
def test_the_fused_loss_and_its_gradient_are_those_of_cross_entropy(batch, length, words, is_compiled):
    generator = torch.Generator("cuda").manual_seed(words)
    hidden = torch.randn((batch, length, 16), device="cuda", generator=generator)
    weight = torch.randn((words, 16), device="cuda", generator=generator)
    labels = torch.randint(words, (batch, length), device="cuda", generator=generator)
    labels[:, 2] = IGNORED
    items = torch.tensor(71, device="cuda")
    loss_of = torch.compile(next_token_loss, dynamic=False) if is_compiled else next_token_loss

    def loss_and_gradients(dtype, ways, upstream):
        torch._dynamo.reset()
        leaves = [x.to(dtype).detach().requires_grad_() for x in (hidden, weight)]
        with choosing(ways) as used:
            loss = loss_of(F.linear(*leaves), labels, items, overwrite=True)
        return loss.detach(), torch.autograd.grad(loss, leaves, torch.tensor(upstream, device="cuda")), used

    reference, expected, _ = loss_and_gradients(torch.float32, {"loss": "torch_loss"}, 1.0)
    for upstream in (1.0, 4.0):
        loss, gradients, used = loss_and_gradients(torch.bfloat16, {}, upstream)
        assert used == {"loss": {"triton_loss": None}}
        assert loss.item() == pytest.approx(reference.item(), rel=5e-3)
        for gradient, exact in zip(gradients, expected, strict=True):
            error = (gradient.float() / upstream - exact).norm() / exact.norm()
            assert error < 1.5e-2


def test_numbers_that_are_not_finite_stay_seen():
    logits = torch.randn((1, 4, 100), device="cuda").bfloat16()
    logits[0, 1, 7] = float("nan")
    loss = next_token_loss(
        logits.requires_grad_().clone(), torch.zeros((1, 4), dtype=torch.long, device="cuda"), 3, True
    )
    assert loss.isnan()
