"""Models in several precisions on several benchmarks, and its special case: what do four bits cost?"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from effllm.init.catalog import chosen_benchmarks, chosen_precisions, documents_of, inference_of, precisions, presets
from effllm.init.chosen import ChosenModel
from effllm.init.recipes.recipe import Draft, Drafts, Recipe
from effllm.init.size import Cut, Size
from effllm.init.text import comment, entry, flow
from effllm.init.wishes import Wishes
from effllm.intervals import Z95
from effllm.models.checkpoint.widths import linear_in_features
from effllm.quantization import Precision

_GROUP_SIZES = (128, 64, 32, -1)
_DOCUMENTS = (2000, 1500, 1000, 750, 500, 400, 300, 200, 150, 100, 75, 50, 25)
_TEMPLATE = (
    "`chat` prompts in the tokenizer's template: take it out for a base model, whose template was never trained."
)


class CompareRecipe(Recipe):
    """Every model in every precision, side by side."""

    question: ClassVar[str] = "What do these precisions cost my models, and what do they save?"
    takes: ClassVar[frozenset[str]] = frozenset({"--model", "--precisions", "--benchmarks"})
    needs: ClassVar[frozenset[str]] = frozenset({"--model"})
    preset: ClassVar[str | None] = None

    def drafts(self, wishes: Wishes, models: Sequence[ChosenModel]) -> Drafts:
        benchmarks, chosen = chosen_benchmarks(wishes), chosen_precisions(wishes)
        known = precisions(wishes)
        table = {"models": [model.id for model in models], "precisions": chosen, "benchmarks": benchmarks}
        extends = [*presets(wishes, benchmarks), *([self.preset] if self.preset else [])]
        fixed = models_section(models, {id: known[id] for id in chosen}, prompts=bool(benchmarks))

        def at(size: Size) -> Draft:
            sections = [*fixed, *_documents_section(benchmarks, size), *inference_section(size)]
            return Draft(extends, [*sections, "tables:", *entry("table9", table)], ["table9"])

        cuts = window_cuts(inference_of(wishes))
        if benchmarks:
            cuts.insert(1, Cut("documents", None, _DOCUMENTS, _documents_said))
        return Drafts(at, cuts)


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


def inference_section(size: Size) -> list[str]:
    """`inference:` of a study whose measured windows were cut."""
    changed = {"repeats": size.repeats, "minimum_window_s": size.window_s}
    changed = {key: value for key, value in changed.items() if value is not None}
    return entry("inference", changed, indent=0) if changed else []


def window_cuts(inference: Mapping[str, Any]) -> list[Cut]:
    """Fewer windows, but three for an interval; shorter ones, which power sensors like less."""
    repeats, window_s = inference["repeats"], inference["minimum_window_s"]
    fewer = tuple(count for count in (12, 8, 5, 4, 3) if count < repeats)
    shorter = tuple(seconds for seconds in (20, 10, 3, 2) if window_s / 3 <= seconds < window_s)
    cuts = [Cut("repeats", repeats, fewer, lambda count: f"{count} measured windows of each workload")]
    if shorter:
        cuts.append(Cut("window_s", window_s, shorter, lambda seconds: f"windows of {seconds:g} s"))
    return cuts


def _documents_section(benchmarks: Sequence[str], size: Size) -> list[str]:
    if size.documents is not None:
        limits = documents_of(benchmarks, size.documents)
        return ["benchmarks:", *(line for id, limit in limits.items() for line in entry(id, limit))] if limits else []
    limited = documents_of(benchmarks or ["ifeval"], 100) or {benchmarks[0]: {"items": 50}}
    one = dict(list(limited.items())[:1])
    return [
        "",
        *comment("Benchmarks are whole. The first documents of each of its tasks alone:"),
        *comment(f"benchmarks: {flow(one)}"),
    ]


def _documents_said(documents: int | None) -> str:
    if documents is None:
        return "all"
    points = 100 * Z95 * 0.5 / math.sqrt(documents)
    return f"the first {documents:,} documents of each task (a score of one task within {points:.1f} points, at 95 %)"


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
