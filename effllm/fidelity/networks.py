"""Networks that give features of images: the small one that is trained here, and Inception.

Images are uint8 [images, channels, size, size]; features are float64 [images, width].
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from effllm.errors import UserError, reason_of
from effllm.results.fidelity import FeaturesSummary
from effllm.runtime.artifact import Artifact

WEIGHTS = "network.safetensors"
_CHANNELS = (24, 48)
_POOLED = 2


class Features(Protocol):
    """What fidelity asks of a network."""

    def features(self, images: Tensor) -> Tensor:
        """Features [images, width] of uint8 images."""

    def labels(self, images: Tensor) -> Tensor | None:
        """The label that it gives to each image; None where it knows none of the study's."""


class SmallNetwork(nn.Module):
    """Two convolutions, a layer of `width` features and one of labels. Features are standardised over its own images.

    `mean` and `deviation` of the raw features are part of its weights.
    """

    def __init__(self, channels: int, width: int, classes: int):
        super().__init__()
        self.first = nn.Conv2d(channels, _CHANNELS[0], 3, padding=1)
        self.second = nn.Conv2d(_CHANNELS[0], _CHANNELS[1], 3, padding=1)
        self.wide = nn.Linear(_CHANNELS[1] * _POOLED**2, width)
        self.label = nn.Linear(width, classes)
        self.mean = nn.Buffer(torch.zeros(width))
        self.deviation = nn.Buffer(torch.ones(width))

    def raw(self, images: Tensor) -> Tensor:
        """Features [images, width] of images in float32 from -1 to 1."""
        hidden = F.avg_pool2d(F.gelu(self.first(images)), 2)
        hidden = F.adaptive_avg_pool2d(F.gelu(self.second(hidden)), _POOLED)
        return F.gelu(self.wide(hidden.flatten(1)))

    def forward(self, images: Tensor) -> Tensor:
        """The logits of the labels."""
        scores: Tensor = self.label(self.raw(images))
        return scores

    def features(self, images: Tensor) -> Tensor:
        """As of `Features`."""
        return ((self.raw(scaled(images)) - self.mean) / self.deviation).double()

    def labels(self, images: Tensor) -> Tensor:
        """As of `Features`."""
        return self.forward(scaled(images)).argmax(dim=1)


def scaled(images: Tensor) -> Tensor:
    """uint8 to float32 from -1 to 1."""
    return images.float() / 127.5 - 1


class Inception:
    """Inception v3 by torch-fidelity, with the resizing of TensorFlow 1 by which published distances are computed."""

    def __init__(self, weights: Mapping[str, Tensor], device: str):
        try:
            from torch_fidelity import FeatureExtractorInceptionV3
        except ImportError as error:
            raise UserError(
                f"features of kind inception need torch-fidelity and torchvision ({reason_of(error)}): "
                "pip install --no-deps -r requirements-inception.txt."
            ) from None
        # It reads a file, and would unpickle any; this one holds tensors alone.
        with tempfile.NamedTemporaryFile(suffix=".pth") as file:
            torch.save(dict(weights), file.name)
            self._network = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=file.name)
        self._network.to(device)

    def features(self, images: Tensor) -> Tensor:
        """As of `Features`; grey images have three equal channels."""
        coloured = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
        found: Tensor = self._network(coloured)[0]
        return found.double()

    def labels(self, images: Tensor) -> None:
        """As of `Features`: its labels are not the study's."""
        return None


def load_network(artifact: Artifact, device: str) -> Features:
    """The network of an artifact of stage `features`."""
    summary = FeaturesSummary.read(artifact.directory)
    weights = read_weights(artifact.directory / WEIGHTS)
    if summary.kind == "inception":
        return Inception(weights, device)
    assert summary.channels is not None and summary.classes is not None
    network = SmallNetwork(summary.channels, summary.width, len(summary.classes))
    network.load_state_dict(weights)
    return network.to(device).eval()


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; `UserError` where it is damaged."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read ({reason_of(error)}): delete {path.parent} and run again.") from None
