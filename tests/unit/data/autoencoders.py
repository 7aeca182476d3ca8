"""An autoencoder of random weights, small enough for a test."""

from pathlib import Path
from typing import Any

import torch


def save_autoencoder(directory: Path, **config: Any) -> Any:
    """diffusers' AutoencoderKL that halves the sides of grey images, saved in `directory`."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    shape = {
        "in_channels": 1,
        "out_channels": 1,
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "block_out_channels": [4, 8],
        "layers_per_block": 1,
        "norm_num_groups": 2,
        "latent_channels": 2,
        "scaling_factor": 0.5,
        "shift_factor": 0.25,
    }
    model = AutoencoderKL(**shape | config).eval()
    model.save_pretrained(directory)
    return model
