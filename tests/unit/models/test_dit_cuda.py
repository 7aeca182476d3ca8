"""Diffusion transformers on a GPU: other kernels, the same function; compiled, and in bfloat16."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from effllm.diffusion.chain import DdpmObjective
from effllm.diffusion.settings import Ddpm
from effllm.models.dit import DiT

from .test_dit import VARIANTS, small

pytestmark = pytest.mark.gpu


def loss_of(model: DiT) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    images, noise = torch.randn(2, 6, 3, 8, 8, generator=generator).to(model.device)
    times, labels = torch.arange(6, device=model.device) * 190, torch.arange(6, device=model.device) % 5
    return model(images, times, labels, noise=noise, objective=DdpmObjective(Ddpm(kind="ddpm"), True))["loss"]


@pytest.mark.parametrize(("attention", "feed_forward"), VARIANTS)
def test_loss_and_gradients_on_cuda_are_those_on_the_cpu(attention, feed_forward):
    results = []
    for device in ("cpu", "cuda"):
        model = small(attention, feed_forward).to(device).train()
        loss = loss_of(model)
        loss.backward()
        results.append((loss.detach().cpu(), [weight.grad.cpu() for weight in model.parameters()]))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(("attention", "feed_forward"), VARIANTS)
def test_mixed_precision_trains_compiled_or_not(attention, feed_forward):
    model = small(attention, feed_forward).cuda().train()
    exact = loss_of(model).item()
    for step in (loss_of, torch.compile(loss_of, dynamic=False)):
        with torch.autocast("cuda", torch.bfloat16):
            loss = step(model)
        loss.backward()
        assert loss.item() == pytest.approx(exact, rel=0.05)
        assert all(weight.grad.isfinite().all() for weight in model.parameters())
        model.zero_grad()
    torch._dynamo.reset()


def test_latent_attention_of_odd_widths_keeps_the_flash_kernel():
    # Keys of 12 and 6 numbers, as XL/2 has 72 and 36: no multiple of 8, and wider than values.
    model = small("mla", num_attention_heads=2, head_dim=12).cuda().train()
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION), torch.autocast("cuda", torch.bfloat16):
        loss_of(model).backward()
