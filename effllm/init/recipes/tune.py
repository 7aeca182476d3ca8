"""Which fine-tuning method for my model and my data?"""

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

from pydantic import TypeAdapter

from effllm.data.instructions.advice import columns_of, image_column, listed
from effllm.data.instructions.rows import UnusableRowError, messages_of
from effllm.data.instructions.settings import Columns, FilesInstructionSource
from effllm.data.instructions.sources import open_source
from effllm.data.sources.reading import json_array, json_lines, open_parquet
from effllm.errors import UserError
from effllm.init.catalog import protocol
from effllm.init.chosen import ChosenModel
from effllm.init.recipes.compare import models_section
from effllm.init.recipes.recipe import Draft, Drafts, Recipe
from effllm.init.size import Cut, Size
from effllm.init.text import comment, entry
from effllm.init.wishes import Wishes

_ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".parquet")
_LOOKED_AT = 1000
_FEWEST = 40
_HELD_OUT = 0.1
# Of the preset.
_PER_STEP, _HELD_OUT_SAMPLES = 16, 500
_FEW_PER_STEP = 4
_STEPS_ON_CPU, _FEWEST_STEPS = 12, 6
# Layers that Freeze fixes, unless the model has hardly more.
_FROZEN_LAYERS = 8
# That of the preset's adapters.
_RANK = 64
# Peak rates by parameters: smaller models take larger ones, as in the paper's study.
_RATES = ((2e9, 5e-5), (6e9, 3e-5))
_RATE_OF_LARGE = 2e-5


class TuneRecipe(Recipe):
    """Full, LoRA, RSLoRA, DoRA and Freeze under one protocol."""

    question: ClassVar[str] = "Which fine-tuning method for my model and my data?"
    takes: ClassVar[frozenset[str]] = frozenset({"--model", "--data"})
    needs: ClassVar[frozenset[str]] = takes

    def drafts(self, wishes: Wishes, models: Sequence[ChosenModel]) -> Drafts:
        assert wishes.data is not None
        path = Path(os.path.normpath(wishes.data.expanduser().absolute()))
        # A budget is one for all of them.
        columns, samples = _look_into(path, _LOOKED_AT if wishes.hours is None else None)
        steps = _STEPS_ON_CPU if wishes.on_cpu else _steps(samples)
        cuts = [Cut("steps", steps, _fewer(steps), lambda count: f"{count:,} steps")]
        if samples >= _LOOKED_AT and not wishes.on_cpu:
            said = "a loss of {} held-out samples"
            cuts.insert(0, Cut("documents", _HELD_OUT_SAMPLES, (200, 100), said.format))
        return Drafts(lambda size: self._draft(wishes, models, path, columns, samples, size), cuts)

    def _draft(
        self,
        wishes: Wishes,
        models: Sequence[ChosenModel],
        path: Path,
        columns: dict[str, str],
        samples: int,
        size: Size,
    ) -> Draft:
        suite: dict[str, Any] = {"models": [model.id for model in models]}
        rates = {model.id: rate for model in models if (rate := _rate(model)) != _RATES[0][1]}
        if rates:
            suite["learning_rate_by_model"] = rates
        if samples < _LOOKED_AT:
            # A step of sixteen samples would leave few steps to learn by.
            suite |= {"samples_per_step": _FEW_PER_STEP, "held_out_samples": None}
        if wishes.on_cpu:
            suite |= {
                "encoding": {"sequence_length": 128},
                "epochs": None,
                "max_steps": _STEPS_ON_CPU,
                "dtype": "float32",
                "checkpoint_every_steps": 10,
                "held_out_samples": 20,
            }
        if size.steps is not None:
            suite |= {"epochs": None, "max_steps": size.steps}
        if size.documents is not None:
            suite["held_out_samples"] = size.documents
        source = {"kind": "files", "paths": [str(path)], "columns": columns}
        instructions: dict[str, Any] = {"source": source, "held_out_fraction": _HELD_OUT}
        if wishes.hours is not None:
            # All of them; a plan knows no file's number.
            instructions["maximum_samples"] = samples
        layers = [count for model in models if (count := model.number("num_hidden_layers"))]
        frozen = min([_FROZEN_LAYERS, *(max(1, count // 2) for count in layers)])
        known = f"{samples:,}" if samples < _LOOKED_AT or wishes.hours is not None else f"{_LOOKED_AT:,} or more"
        sections = [
            *comment(f"{known} samples; a tenth of the prompts is held out, and says how well a method learns."),
            "instructions:",
            *entry("mine", instructions),
            *models_section(models, {}),
            *comment("Data, steps, schedule and rate are alike for all methods, so that their rows compare."),
            "finetuning:",
            *entry("tune", suite),
        ]
        methods: dict[str, Any] = {} if frozen == _FROZEN_LAYERS else {"freeze": {"frozen_layers": frozen}}
        if (rank := min([_RANK, *(_largest_rank(model) for model in models)])) < _RANK:
            methods |= {method: {"rank": rank, "alpha": 2 * rank} for method in ("lora", "rslora", "dora")}
        if methods:
            sections.append("methods:  # of so small a model")
            sections += [line for id, content in methods.items() for line in entry(id, content)]
        return Draft([protocol(wishes), "presets/recipes/tune.yaml"], sections, ["table7"])


def _rate(model: ChosenModel) -> float:
    hidden, layers = model.number("hidden_size"), model.number("num_hidden_layers")
    # Twelve squares of the width a layer: near enough for a rate.
    parameters = 12 * layers * hidden**2 if hidden and layers else 0
    return next((rate for most, rate in _RATES if parameters < most), _RATE_OF_LARGE)


def _largest_rank(model: ChosenModel) -> int:
    """A quarter of the narrowest layer: an adapter as wide as its layer would save nothing."""
    hidden, heads = model.number("hidden_size"), model.number("num_attention_heads")
    if not hidden or not heads:
        return _RANK
    head_dim = model.number("head_dim") or hidden // heads
    return max(1, head_dim * (model.number("num_key_value_heads") or heads) // 4)


def _steps(samples: int) -> int:
    """Steps of one pass over the data, by the samples of a step that the draft has."""
    return max(1, round(samples * (1 - _HELD_OUT)) // (_FEW_PER_STEP if samples < _LOOKED_AT else _PER_STEP))


def _fewer(steps: int) -> tuple[int, ...]:
    counts = (round(steps * share) for share in (0.75, 0.5, 0.35, 0.25, 0.15, 0.1, 0.05, 0.025))
    return tuple(count for count in dict.fromkeys(counts) if _FEWEST_STEPS <= count < steps)


def _look_into(path: Path, most: int | None = _LOOKED_AT) -> tuple[dict[str, str], int]:
    """The columns of instruction data, and how many of its first `most` rows can be used; `UserError` for too few."""
    if not path.is_file():
        raise UserError(f"--data {path} is no file: name the conversations, as *.jsonl or *.parquet.")
    if not path.name.lower().endswith(_ENDINGS):
        raise UserError(f"--data {path} is none of {', '.join(f'*{ending}' for ending in _ENDINGS)}: convert it.")
    names = _column_names(path)
    columns = columns_of(names)
    if columns is None:
        raise UserError(
            f"--data {path} has the columns {listed(names)}, which do not tell what is asked and what is answered: "
            "call them prompt and response, or messages for whole conversations."
        )
    if image := image_column(names):
        raise UserError(
            f"--data {path} has images in its column {image!r}, and studies are written for text here: take the column "
            "out, or write the study by docs/vision-language.md."
        )
    config = FilesInstructionSource(
        kind="files", paths=[str(path)], columns=TypeAdapter(Columns).validate_python(columns)
    )
    with tempfile.TemporaryDirectory(prefix="effllm-init-") as folder:
        rows = open_source(config, {"files[0]": path}, Path(folder)).rows()
        usable = sum(_is_usable(row.values, config.columns) for row in islice(rows, most))
    if usable < _FEWEST:
        raise UserError(
            f"--data {path}: {usable} of its first {_LOOKED_AT:,} rows can be used as "
            f"{' and '.join(columns[key] for key in columns if key != 'kind')}, and {_FEWEST} are the fewest: add some."
        )
    return columns, usable


def _column_names(path: Path) -> list[str]:
    if path.suffix.lower() == ".parquet":
        with open_parquet(path) as file:
            return list(file.schema_arrow.names)
    rows: Iterator[Mapping[str, Any]] = iter(
        json_array(path) if path.suffix.lower() == ".json" else (row for _, row in json_lines(path))
    )
    return list(next(rows, {}))


def _is_usable(row: Mapping[str, Any], columns: Columns) -> bool:
    try:
        messages_of(row, columns)
    except UnusableRowError:
        return False
    return True
