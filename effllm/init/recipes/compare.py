"""Models in several precisions on several benchmarks, and its special case: what do four bits cost?"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from effllm.init.catalog import chosen_benchmarks, chosen_precisions, precisions, presets
from effllm.init.chosen import ChosenModel
from effllm.init.recipes.recipe import Draft, Recipe
from effllm.init.text import comment, entry, flow
from effllm.init.wishes import Wishes
from effllm.models.checkpoint.widths import linear_in_features
from effllm.quantization import Precision

_GROUP_SIZES = (128, 64, 32, -1)
_TEMPLATE = (
    "`chat` prompts in the tokenizer's template: take it out for a base model, whose template was never trained."
)


class CompareRecipe(Recipe):
    """Every model in every precision, side by side."""

    question: ClassVar[str] = "What do these precisions cost my models, and what do they save?"
    takes: ClassVar[frozenset[str]] = frozenset({"--model", "--precisions", "--benchmarks"})
    needs: ClassVar[frozenset[str]] = frozenset({"--model"})
    preset: ClassVar[str | None] = None

    def draft(self, wishes: Wishes, models: Sequence[ChosenModel]) -> Draft:
        benchmarks, chosen = chosen_benchmarks(wishes), chosen_precisions(wishes)
        known = precisions(wishes)
        table = {"models": [model.id for model in models], "precisions": chosen, "benchmarks": benchmarks}
        sections = [
            *models_section(models, {id: known[id] for id in chosen}, prompts=bool(benchmarks)),
            "",
            *comment("Benchmarks are whole. The first documents of each of its tasks alone:"),
            *comment(f"benchmarks: {flow({id: {'limit': 100} for id in benchmarks[:1] or ['ifeval']})}"),
            "tables:",
            *entry("table9", table),
        ]
        return Draft([*presets(wishes, benchmarks), *([self.preset] if self.preset else [])], sections, ["table9"])


class Int4Recipe(CompareRecipe):
    """bfloat16 and int4, and which to take."""

    question: ClassVar[str] = "What do four bits cost my model: memory, latency, energy, score?"
    takes: ClassVar[frozenset[str]] = frozenset({"--model", "--benchmarks"})
    preset: ClassVar[str | None] = "presets/recipes/int4.yaml"


def models_section(
    models: Sequence[ChosenModel], chosen: Mapping[str, Precision], *, prompts: bool = False
) -> list[str]:
    """`models:` of a study; `prompts`: whether they are asked anything, in chat templates where they have one."""
    lines = [*(comment(_TEMPLATE) if prompts and any(model.is_chat for model in models) else ()), "models:"]
    for model in models:
        about = ", ".join(part for part in (model.facts.about if model.facts else "", _of_pin(model)) if part)
        content: dict[str, Any] = {"source": model.source}
        if prompts and model.is_chat:
            content["chat"] = {}
        if adjusted := _group_sizes(model, chosen):
            content["precisions"] = adjusted
            about += "; groups of the usual size do not divide its layers"
        lines += [*comment(about, indent=2), *entry(model.id, content)]
    return lines


def _of_pin(model: ChosenModel) -> str:
    return f"revision: {model.pin}" if model.pin else ""


def _group_sizes(model: ChosenModel, chosen: Mapping[str, Precision]) -> dict[str, dict[str, int]]:
    """The group sizes that divide the model's layers, of the precisions whose own does not."""
    widths = linear_in_features(model.facts.config) if model.facts else {}
    found: dict[str, dict[str, int]] = {}
    for id, precision in chosen.items():
        if precision.misfit_of_widths(widths):
            sizes = (precision.model_copy(update={"group_size": size}) for size in _GROUP_SIZES)
            fitting = next((fits for fits in sizes if not fits.misfit_of_widths(widths)), None)
            if fitting is not None:
                found[id] = {"group_size": fitting.model_dump()["group_size"]}
    return found
