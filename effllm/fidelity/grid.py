"""Samples to look at: one PNG, a row for each class."""

from pathlib import Path

import numpy as np
from PIL import Image

_ROWS, _COLUMNS = 10, 10
# Pixels of an image in the grid, at least and at most, and between images.
_SMALLEST, _LARGEST, _GAP = 32, 96, 2


def write_grid(path: Path, images: np.ndarray, classes: int) -> None:
    """Draw the first samples of ten classes, evenly over all, from uint8 [images, channels, size, size].

    Image n is of class n % classes; without classes images come as they are. Small images are enlarged by a whole
    factor, large ones reduced.
    """
    classes = classes or min(_ROWS, len(images))
    chosen = np.unique(np.linspace(0, classes - 1, min(_ROWS, classes)).round().astype(int))
    columns = max(1, min(_COLUMNS, len(images) // classes))
    size = images.shape[2]
    shown = _LARGEST if size > _LARGEST else size * max(1, -(-_SMALLEST // size))
    step = shown + _GAP
    channels = images.shape[1]
    grid = Image.new("L" if channels == 1 else "RGB", (columns * step - _GAP, len(chosen) * step - _GAP), "white")
    for row, label in enumerate(chosen):
        for column in range(columns):
            pixels = images[label + column * classes].transpose(1, 2, 0)
            picture = Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels)
            way = Image.Resampling.BOX if shown < size else Image.Resampling.NEAREST
            grid.paste(picture.resize((shown, shown), way), (column * step, row * step))
    grid.save(path, optimize=True)
