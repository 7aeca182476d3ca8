"""What fine-tuning an image or video model takes, by the shapes of its transformer and of its samples."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from effllm.models.generators.family import Layer
from effllm.models.generators.shapes import TransformerShape, shape_of_source
from effllm.training.methods.adapter import AdapterMethod
from effllm.training.methods.dense_update import DenseUpdateMethod, LowRankSize, Width
from effllm.training.methods.low_rank import LowRankMethod
from effllm.training.methods.method import Method
from effllm.training.methods.targets import ALL_LINEAR
from effllm.training.tuning_settings import TuningRun

# Bytes that a block keeps for the backward pass, for each number of a sample's rows at its width: of LoRA, whose model
# is in 16 bits, and where the model itself is trained; in bfloat16 on an H100 (docs/results/h100/image-models.json).
_KEPT_B = {"sd3": (65, 100), "wan": (52, 88)}
_INPUT_B = 2


@dataclass(frozen=True)
class TuningCosts:
    """A method on a transformer, with samples of so many patches and texts."""

    method: Method
    shape: TransformerShape
    patches: int
    texts: int

    @cached_property
    def targets(self) -> dict[str, Layer]:
        """The layers that get an update; none where the model itself is trained. ValueError where nothing tells."""
        if self.method.trains_whole_model:
            return {}
        if not isinstance(self.method, AdapterMethod):
            raise ValueError("the method is none of models of images")
        return self._named(self.method.target_modules)

    @cached_property
    def trained(self) -> int:
        """Parameters that are trained."""
        if not self.targets:
            return self.shape.parameters()
        assert isinstance(self.method, AdapterMethod)
        if not isinstance(self.method, DenseUpdateMethod):
            return sum(self.method.layer_parameters(*width) for width in _widths(self.targets))
        return sum(self.method.parameters_at(self._rank, *width) for width in _widths(self.targets))

    @cached_property
    def forward_flops(self) -> int:
        """Of a sample, the method's own left out."""
        products = sum(layer.inputs * layer.outputs * self._rows(layer) for layer in self.shape.layers().values())
        return 2 * (products + self._scores)

    @cached_property
    def sample_flops(self) -> int:
        """Of a forward and a backward pass: fixed weights have no gradient of their own."""
        if not self.targets:
            return 3 * self.forward_flops
        assert isinstance(self.method, AdapterMethod)
        added = sum(
            self.method.row_products(layer.inputs, layer.outputs) * self._rows(layer) for layer in self.targets.values()
        )
        return 2 * self.forward_flops + 2 * self._scores + 6 * added

    @cached_property
    def pass_flops(self) -> int:
        """Of what a method forms of its factors in a pass, whatever the batch."""
        if not isinstance(self.method, DenseUpdateMethod):
            return 0
        return sum(self.method.forming_flops(self._rank, *width) for width in _widths(self.targets))

    def step_flops(self, samples: int, passes: int) -> int:
        """Of a step of so many samples in so many passes."""
        return samples * self.sample_flops + passes * self.pass_flops

    def kept_b(self, run: TuningRun) -> float | None:
        """Bytes that a pass keeps for the backward pass; None where nothing like it was measured."""
        if run.dtype != "bfloat16" or not (self.method.trains_whole_model or isinstance(self.method, LowRankMethod)):
            return None
        blocks, width = self.shape.blocks()
        each_b = _KEPT_B[self.shape.family.name][self.method.trains_whole_model]
        of_blocks = each_b + _INPUT_B * blocks if run.activation_checkpointing else each_b * blocks
        return float(run.micro_batch_size * (self.patches + self.texts) * width * of_blocks)

    @property
    def _scores(self) -> int:
        return self.shape.family.score_products(self.shape.config, self.patches, self.texts)

    @cached_property
    def _rank(self) -> int:
        assert isinstance(self.method, DenseUpdateMethod)
        matched, size = None, self.method.match_parameters
        if isinstance(size, LowRankSize):
            matched = size.parameters(_widths(self._named(size.target_modules)))
        return self.method.rank_on(_widths(self.targets), matched)

    def _rows(self, layer: Layer) -> int:
        return {"patches": self.patches, "texts": self.texts, "one": 1}[layer.rows]

    def _named(self, wanted: str | list[str]) -> dict[str, Layer]:
        def is_named(name: str) -> bool:
            if isinstance(wanted, str):
                return wanted == ALL_LINEAR or re.fullmatch(wanted, name) is not None
            return any(name == end or name.endswith(f".{end}") for end in wanted)

        return {name: layer for name, layer in self.shape.layers().items() if is_named(name)}


def largest_costs(
    run: TuningRun, generator: Mapping[str, Any], encoding: Mapping[str, Any], captions: Mapping[str, Any]
) -> TuningCosts:
    """The costs of the largest of the shapes of samples; by slices of the study. ValueError where nothing tells."""
    shape = shape_of_source(generator)
    rows = [
        shape.family.rows(shape.config, (int(width), int(height)), captions["frames"], encoding["text_tokens"])
        for width, _, height in (size.partition("x") for size in captions["shapes"])
    ]
    return TuningCosts(run.method, shape, *max(rows))


def _widths(layers: Mapping[str, Layer]) -> list[Width]:
    return [(layer.inputs, layer.outputs, True) for layer in layers.values()]
