"""A transformer of diffusers as the Trainer takes it: with its loss, and saving no more than what is trained."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from effllm.diffusion.flow import FlowObjective
from effllm.models.generators.family import Family

_OBJECTIVE = FlowObjective()


class FlowTransformer(nn.Module):
    """Rectified flow with a transformer, which may have an adapter."""

    # What the Trainer asks of models: whether they divide the loss themselves, and which weights may be missing.
    accepts_loss_kwargs = False
    _keys_to_ignore_on_save = None

    def __init__(self, transformer: nn.Module, family: Family):
        super().__init__()
        self.transformer, self.family = transformer, family

    def forward(self, latents: Tensor, noise: Tensor, times: Tensor, **texts: Tensor) -> dict[str, Tensor]:
        """The mean loss of latents [batch, channels, ...] at times [batch] from 0 to 1."""
        return {"loss": self.losses(latents, noise, times, **texts).mean()}

    def losses(self, latents: Tensor, noise: Tensor, times: Tensor, **texts: Tensor) -> Tensor:
        """Of each sample [batch]; latents and texts come as they are stored, in float16."""
        latents = latents.float()
        output = self.direction(_OBJECTIVE.noised(latents, noise, times), times, texts)
        return _OBJECTIVE.losses(output, latents, noise, times)

    def direction(self, noised: Tensor, times: Tensor, texts: Mapping[str, Tensor]) -> Tensor:
        """What the transformer predicts, in float32."""
        inputs = {name: values.float() for name, values in texts.items()}
        output = self.transformer(
            hidden_states=noised, timestep=_OBJECTIVE.model_time(times), return_dict=False, **inputs
        )
        return output[0].float()

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return next(self.parameters()).device

    def activation_checkpointing_enable(self, **_: Any) -> None:
        """As the Trainer asks for it, with its defaults; diffusers recomputes each block, without reentrance."""
        enable: Callable[[], None] = self.transformer.enable_gradient_checkpointing  # type: ignore[assignment]
        enable()

    def state_dict(self, *arguments: Any, **options: Any) -> dict[str, Any]:  # type: ignore[override]
        """What is trained: the rest is in the base model."""
        whole = super().state_dict(*arguments, **options)
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        return {name: value for name, value in whole.items() if name in trained}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """What `state_dict` has; KeyError where that is not what is trained here."""
        if state_dict.keys() != self.state_dict().keys():
            raise KeyError("the tensors are not those that this model trains")
        result = super().load_state_dict(state_dict, strict=False, assign=assign)
        return type(result)([], [])


def arithmetic(dtype: str, device: torch.device) -> Any:
    """The arithmetic of a training in `dtype`, for what is done outside of it."""
    return torch.autocast(device.type, torch.bfloat16) if dtype == "bfloat16" else nullcontext()


def step_flops(model: FlowTransformer, sample: Mapping[str, Tensor], samples: int, passes: int) -> int:
    """FLOPs of a step of so many samples like this batch of one, in so many forward and backward passes.

    What a method forms of its factors it forms once in each pass, whatever the batch.
    """
    one, two = (training_flops(model, sample, batch) for batch in (1, 2))
    return samples * (two - one) + passes * (2 * one - two)


def training_flops(model: FlowTransformer, sample: Mapping[str, Tensor], batch: int) -> int:
    """FLOPs of the products of a forward and a backward pass of a batch, without any recomputation.

    `sample` is a batch of one. Counted on tensors without content, where the method's own products are counted too.
    """

    def like(tensor: Tensor, *shape: int) -> Tensor:
        dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
        return torch.empty(shape or tensor.shape, dtype=dtype, device="meta")

    parameters = {
        name: like(parameter).requires_grad_(parameter.requires_grad) for name, parameter in model.named_parameters()
    }
    buffers = {name: like(buffer) for name, buffer in model.named_buffers()}
    with FlopCounterMode(display=False) as counter:
        inputs = {name: like(tensor, batch, *tensor.shape[1:]) for name, tensor in sample.items()}
        functional_call(model, {**parameters, **buffers}, kwargs=inputs)["loss"].backward()
    return counter.get_total_flops()
