"""Which architecture learns best per FLOP at my budget?"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from effllm.init.catalog import EMBEDDED, protocol
from effllm.init.chosen import ChosenModel
from effllm.init.recipes.recipe import Draft, Drafts, Recipe
from effllm.init.size import Cut, Size, TooLargeError
from effllm.init.text import comment, entry
from effllm.init.wishes import Wishes
from effllm.models.costs import parameter_count, training_flops
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
# Backbones from the largest: width, width of the feed-forward layer, layers, heads, sequences of a micro batch.
_SCALES = {
    "350 million parameters": (1024, 2816, 24, 16, 8),
    "200 million parameters": (1024, 2816, 16, 16, 8),
    "100 million parameters": (768, 2048, 12, 12, 16),
    "50 million parameters": (512, 1536, 10, 8, 16),
    "15 million parameters": (256, 768, 8, 4, 16),
}
# The preset's own.
_USUAL = "100 million parameters"
_EXPERTS_ON_CPU = {"architecture": {"moe_intermediate_size": 96}}
# Words of the corpus's own count for each token of a run, with a margin: the two tokenizers differ by a few per cent.
_MARGIN = 1.1
# FineWeb-Edu's sample-10BT, less what is held out.
_SAMPLE_TOKENS = 9_900_000_000


class PretrainRecipe(Recipe):
    """One backbone with one thing changed at a time, each trained with the same FLOPs."""

    question: ClassVar[str] = "Which architecture learns best per FLOP at my budget?"
    takes: ClassVar[frozenset[str]] = frozenset()

    def drafts(self, wishes: Wishes, models: Sequence[ChosenModel]) -> Drafts:
        extends = [*([EMBEDDED] if wishes.on_cpu else []), protocol(wishes), _PRESET]
        usual = _tokens_per_parameter(_parsed(extends, _changed(wishes, Size())))
        fewer = tuple(float(f"{usual * share / 20:.3g}") for share in range(19, 5, -1))
        more = () if wishes.on_cpu else (3 * usual, 2 * usual, 1.5 * usual)
        cuts = [Cut("tokens", usual, fewer, lambda tokens: f"{tokens:.3g} tokens for each parameter", more)]
        if not wishes.on_cpu:
            names = list(_SCALES)
            middle = names.index(_USUAL)
            larger, smaller = names[:middle], names[middle + 1 :]
            cuts.append(Cut("scale", _USUAL, tuple(smaller), lambda name: f"a backbone of {name}", tuple(larger)))
        return Drafts(lambda size: _draft(wishes, extends, usual, size), cuts)


def _draft(wishes: Wishes, extends: Sequence[str], usual: float, size: Size) -> Draft:
    changed = _changed(wishes, size)
    study = _parsed(extends, changed)
    if (size.tokens, size.scale) != (None, None):
        tokens = (size.tokens or usual) * _parameters(study)
        steps = round(tokens / _tokens_per_step(study))
        changed[_BASELINE] = {**changed.get(_BASELINE, {}), "max_steps": steps}
        study = _parsed(extends, changed)
    steps_of = _equal_steps(study)
    for id, count in steps_of.items():
        changed[id] = {**changed.get(id, {}), "max_steps": count}
    flops = steps_of[_BASELINE] * _step_flops(study, _BASELINE)
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
            for id, count in steps_of.items()
        )
        most = round(tokens * _MARGIN / 1e6) * 10**6
        if most > _SAMPLE_TOKENS:
            raise TooLargeError
        sections = [
            *comment("As much text as the longest run reads, once."),
            f"corpora: {{fineweb-edu: {{maximum_tokens: {most:_}}}}}",
            *sections,
        ]
    return Draft(extends, sections, ["table6"])


def _changed(wishes: Wishes, size: Size) -> dict[str, Any]:
    """Keys of the runs that differ from the preset's, the steps apart."""
    if wishes.on_cpu:
        return {_BASELINE: _ON_CPU, "moe": _EXPERTS_ON_CPU}
    if size.scale in (None, _USUAL):
        return {}
    hidden, intermediate, layers, heads, micro = _SCALES[size.scale]
    shape = {"hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers}
    # The width's rule that docs/init.md states.
    peak = 0.768 / hidden
    baseline = {
        "architecture": shape | {"num_attention_heads": heads},
        "optimizer": {
            "learning_rate": float(f"{peak:.2g}"),
            "minimum_learning_rate": float(f"{peak / 10:.2g}"),
        },
        "micro_batch_size": micro,
    }
    return {_BASELINE: baseline, "moe": {"architecture": {"moe_intermediate_size": intermediate // 2}}}


def _parameters(study: Study) -> int:
    run = study.pretraining[_BASELINE]
    return parameter_count(shape_of(run.architecture, _words(study, _BASELINE))).total


def _tokens_per_step(study: Study) -> int:
    run = study.pretraining[_BASELINE]
    return run.global_batch_size * run.sequence_length


def _tokens_per_parameter(study: Study) -> float:
    steps = study.pretraining[_BASELINE].max_steps
    return float(f"{steps * _tokens_per_step(study) / _parameters(study):.3g}")


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
    return run.global_batch_size * training_flops(shape_of(run.architecture, _words(study, id)), run.sequence_length)


def _words(study: Study, id: str) -> int:
    run = study.pretraining[id]
    words = run.architecture.vocab_size or vocabulary_of_stream(study, run.tokens)
    # Both texts of the recipe have tokenizers that the study trains.
    assert words is not None
    return words
