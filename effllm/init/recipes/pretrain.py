"""Which architecture learns best per FLOP at my budget?"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from effllm.init.catalog import EMBEDDED, protocol
from effllm.init.chosen import ChosenModel
from effllm.init.recipes.recipe import Draft, Recipe
from effllm.init.text import comment, entry
from effllm.init.wishes import Wishes
from effllm.models.costs import training_flops
from effllm.models.costs.shapes import shape_of
from effllm.study import Study
from effllm.study.agreement import vocabulary_of_stream
from effllm.study.inheritance import SHIPPED, written_out

_PRESET = "presets/recipes/pretrain.yaml"
# Rows of the recipe's table that are compared with the first.
_BASELINE = "gqa"
_ON_CPU: dict[str, Any] = {
    "tokens": "python-docs",
    "architecture": {
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "initializer_range": 0.06,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8,
        "v_head_dim": 16,
        "nsa_window": 32,
        "nsa_compression_block": 16,
        "nsa_compression_stride": 8,
        "nsa_selection_block": 16,
    },
    "sequence_length": 128,
    "global_batch_size": 8,
    "micro_batch_size": 8,
    "max_steps": 120,
    "optimizer": {"learning_rate": 4e-3, "minimum_learning_rate": 4e-4, "warmup_steps": 10},
    "dtype": "float32",
    "deterministic": True,
    "checkpoint_every_steps": 60,
}
_EXPERTS_ON_CPU = {"architecture": {"moe_intermediate_size": 96}}
# Words of the corpus's own count for each token of a run, with a margin: the two tokenizers differ by a few per cent.
_MARGIN = 1.1


class PretrainRecipe(Recipe):
    """One backbone with one thing changed at a time, each trained with the same FLOPs."""

    question: ClassVar[str] = "Which architecture learns best per FLOP at my budget?"
    takes: ClassVar[frozenset[str]] = frozenset()

    def draft(self, wishes: Wishes, models: Sequence[ChosenModel]) -> Draft:
        extends = [*([EMBEDDED] if wishes.on_cpu else []), protocol(wishes), _PRESET]
        changed: dict[str, Any] = {}
        if wishes.on_cpu:
            changed = {_BASELINE: _ON_CPU, "moe": _EXPERTS_ON_CPU}
        study = _parsed(extends, changed)
        steps = _equal_steps(study)
        for id, count in steps.items():
            changed[id] = {**changed.get(id, {}), "max_steps": count}
        flops = steps[_BASELINE] * _step_flops(study, _BASELINE)
        sections = [
            *comment(
                f"{flops:.2g} FLOP for each run: a dearer step means fewer of them. To spend more or less, change all "
                "steps by one factor."
            ),
            "pretraining:",
            *(line for id, content in changed.items() for line in entry(id, content)),
        ]
        if not wishes.on_cpu:
            tokens = max(
                count * study.pretraining[id].global_batch_size * study.pretraining[id].sequence_length
                for id, count in steps.items()
            )
            sections = [
                *comment("As much text as the longest run reads, once."),
                f"corpora: {{fineweb-edu: {{maximum_tokens: {round(tokens * _MARGIN / 1e6) * 10**6:_}}}}}",
                *sections,
            ]
        return Draft(extends, sections, ["table6"])


def _parsed(extends: Sequence[str], changed: Mapping[str, Any]) -> Study:
    raw = written_out({"extends": list(extends), "name": "draft", "pretraining": dict(changed)}, "draft", SHIPPED)
    return Study.model_validate(raw)


def _equal_steps(study: Study) -> dict[str, int]:
    """Steps of each run of the table, by which all take the FLOPs of the baseline's."""
    flops = study.pretraining[_BASELINE].max_steps * _step_flops(study, _BASELINE)
    table = study.tables.defined()["table6"]
    return {id: max(1, round(flops / _step_flops(study, id))) for id in table.nodes(study)["pretrain"]}


def _step_flops(study: Study, id: str) -> int:
    run = study.pretraining[id]
    words = run.architecture.vocab_size or vocabulary_of_stream(study, run.tokens)
    # Both texts of the recipe have tokenizers that the study trains.
    assert words is not None
    return run.global_batch_size * training_flops(shape_of(run.architecture, words), run.sequence_length)
