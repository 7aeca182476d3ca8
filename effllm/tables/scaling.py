"""results/scaling.csv: the scaling law of each technique of Tables 3 to 6, and who comes first at a target size."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from effllm.results.training import LossCurve, PretrainingQuality
from effllm.scaling.answer import Answer, Estimate, answers
from effllm.scaling.law import Design, Points
from effllm.tables.artifacts import Result, read_results
from effllm.tables.cells import Row

Run = Result[PretrainingQuality]
CANNOT_BE_SAID = "cannot be said"
_FORMS = {
    "both": "E + A/N^alpha + B/D^beta",
    "size": "E + A/N^alpha",
    "path": "E + A/N^alpha",
    "tokens": "E + B/D^beta",
}
_NOT_FITTED = {"size": "D does not vary", "path": "D follows N", "tokens": "N does not vary"}
# Further than this many times the largest size lies what no interval here covers.
_FAR = 10.0
_SIZE_COLUMNS = ("E", "A", "alpha", "alpha_low", "alpha_high", "B", "beta", "beta_low", "beta_high")


def scaling_table(spec: Mapping[str, Any], inputs: Mapping[str, list[str]]) -> list[dict[str, Any]]:
    """A row per technique; docs/scaling.md says what each column is.

    `spec` is `Graph.table_spec("scaling")`; `inputs` are paths of manifests by stage.
    """
    results = read_results("pretrain", inputs["pretrain"])
    config = spec["config"]
    target = config["target"]
    rows = []
    for table, competing in config["tables"].items():
        runs = {method: [results[id] for id in ids] for method, ids in competing["techniques"].items()}
        points = {method: _points(its, config["size"], competing["on_the_way"]) for method, its in runs.items()}
        found: dict[str, Answer] = {}
        # Losses on different texts are in no order.
        for methods in _by_text(runs):
            its = {method: points[method] for method in methods}
            found |= answers(its, target["parameters"], target["tokens"], config["draws"], config["seed"])
        rows += [_row(table, method, found[method], runs[method], config, competing["on_the_way"]) for method in runs]
    return rows


def _by_text(runs: Mapping[str, Sequence[Run]]) -> list[list[str]]:
    """The techniques, those together that are scored on the same number of held-out tokens."""
    groups: dict[frozenset[Any], list[str]] = {}
    for method, its in runs.items():
        texts = frozenset(run.content.held_out_tokens for run in its if run.content is not None)
        groups.setdefault(texts, []).append(method)
    return list(groups.values())


def _points(runs: Sequence[Run], size: str, on_the_way: bool) -> Points:
    """The points of all runs that ended well."""
    places = [
        (getattr(run.content, size), tokens, loss, number)
        for number, run in enumerate(runs)
        if run.content is not None and run.content.held_out_loss is not None
        for tokens, loss in (
            _losses_on_the_way(run) if on_the_way else [(run.content.tokens_seen, run.content.held_out_loss)]
        )
    ]
    parameters, tokens, losses, numbers = np.array(places, dtype=float).reshape(-1, 4).T
    return Points(parameters, tokens, losses, numbers.astype(int))


def _losses_on_the_way(run: Run) -> list[tuple[int, float]]:
    run.artifact.verify_record(LossCurve.FILE)
    return [(point.tokens_seen, point.loss) for point in LossCurve.read(run.artifact.directory).held_out]


def _row(
    table: str, method: str, answer: Answer, runs: Sequence[Run], config: Mapping[str, Any], on_the_way: bool
) -> dict[str, Any]:
    row = Row()
    row.set("table", table)
    row.set("method", method)
    row.set("fitted", _fitted(answer), answer.why)
    _set_points(row, answer, runs)
    _set_law(row, answer)
    _set_prediction(row, answer, config["target"])
    row.set("N_counts", config["size"])
    row.set("learning_rate", *_learning_rate([run.manifest.spec["config"] for run in runs]))
    row.set("runs", ", ".join(run.manifest.id for run in runs))
    row.set("warnings", "; ".join(_warnings(answer, runs, config, on_the_way)))
    failed = next((run for run in runs if run.status != "ok"), None)
    left_out = f"{failed.manifest.id} is left out: {failed.absent}" if failed else None
    return row.finish("ok", left_out)


def _fitted(answer: Answer) -> str | None:
    design = answer.design
    if design is None:
        return None
    form = _FORMS[design.kind]
    if design.kind == "size":
        return f"{form} at D = {design.fixed:.3g}"
    if design.kind == "tokens":
        return f"{form} at N = {design.fixed:.3g}"
    if design.path:
        factor, exponent = design.path
        return f"{form} along D = {factor:.3g} N^{exponent:.3g}"
    return form


def _set_points(row: Row, answer: Answer, runs: Sequence[Run]) -> None:
    if answer.design is None:
        for column in ("points", "N_min", "N_max", "D_min", "D_max"):
            row.set(column, None, answer.why)
        return
    points = answer.design.points
    row.set("points", len(points))
    for letter, values in (("N", points.parameters), ("D", points.tokens)):
        row.set(f"{letter}_min", int(values.min()))
        row.set(f"{letter}_max", int(values.max()))


def _set_law(row: Row, answer: Answer) -> None:
    if answer.fitted is None or answer.design is None:
        for column in (*_SIZE_COLUMNS, "residual", "left_out_error"):
            row.set(column, None, answer.why)
        return
    law, kind = answer.fitted.law, answer.design.kind
    row.set("E", float(law.offset))
    fitted = {"both": ("alpha", "beta"), "tokens": ("beta",)}.get(kind, ("alpha",))
    for factor, exponent in (("A", "alpha"), ("B", "beta")):
        if exponent not in fitted:
            for column in (factor, exponent, f"{exponent}_low", f"{exponent}_high"):
                row.set(column, None, _NOT_FITTED[kind])
            continue
        at = fitted.index(exponent)
        row.set(factor, float(law.factors[at]))
        _set_estimate(row, exponent, answer.exponents[at])
    row.set("residual", float(np.sqrt(np.mean(answer.fitted.residuals**2))))
    row.set("left_out_error", answer.left_out_error.value, answer.left_out_error.why)


def _set_prediction(row: Row, answer: Answer, target: Mapping[str, int]) -> None:
    place = answer.place
    row.set("tokens_per_parameter", *_value(answer.tokens_per_parameter, answer))
    for end in ("low", "high"):
        row.set(f"tokens_per_parameter_{end}", *_end(answer.tokens_per_parameter, end, answer))
    for letter, at in (("N", 0), ("D", 1)):
        row.set(f"target_{letter}", float(place[at]) if place else None, answer.why)
    row.set("extrapolation", _extrapolation(answer.design, place) if place and answer.design else None, answer.why)
    row.set("predicted_loss", *_value(answer.predicted, answer))
    for end in ("low", "high"):
        row.set(f"predicted_loss_{end}", *_end(answer.predicted, end, answer))
    why = answer.why or answer.why_no_rank
    row.set("rank", None if answer.rank is None else str(answer.rank), why)
    if answer.rank is None:
        row.cells["rank"] = CANNOT_BE_SAID
    row.set("rank_probability", None if answer.rank is None else answer.ranks[answer.rank - 1], why)
    shares = ", ".join(f"{at}: {100 * share:.1f} %" for at, share in enumerate(answer.ranks, start=1))
    row.set("rank_probabilities", shares or None, why)


def _value(estimate: Estimate, answer: Answer) -> tuple[float | None, str | None]:
    return estimate.value, estimate.why or answer.why


def _end(estimate: Estimate, end: str, answer: Answer) -> tuple[float | None, str | None]:
    value = estimate.interval[end == "high"] if estimate.interval else None
    return value, estimate.why or answer.why


def _set_estimate(row: Row, column: str, estimate: Estimate) -> None:
    row.set(column, estimate.value, estimate.why)
    for end, value in zip(("low", "high"), estimate.interval or (None, None), strict=True):
        row.set(f"{column}_{end}", value, estimate.why)


def _extrapolation(design: Design, place: tuple[float, float]) -> float:
    """How far beyond the largest size (of one size, the most tokens) the prediction is, as a factor."""
    if design.kind == "tokens":
        return place[1] / float(design.points.tokens.max())
    return place[0] / float(design.points.parameters.max())


def _learning_rate(recipes: Sequence[Mapping[str, Any]]) -> tuple[str | None, str | None]:
    """The rule by which the rates of a technique's runs follow their size."""
    rates = [recipe["optimizer"]["learning_rate"] for recipe in recipes]
    rules = [recipe.get("learning_rate_by_width") for recipe in recipes]
    if len(set(rates)) == 1 and all(rule == rules[0] for rule in rules):
        if rules[0] is None:
            return f"{rates[0]:g} at every size", None
        width, exponent = rules[0]["width"], rules[0]["exponent"]
        return f"{rates[0]:g} times (width/{width})^{exponent:g}", None
    return f"{min(rates):g} to {max(rates):g}, each run its own", None


def _warnings(answer: Answer, runs: Sequence[Run], config: Mapping[str, Any], on_the_way: bool) -> list[str]:
    found = []
    recipes = [run.manifest.spec["config"] for run in runs]
    widths = {recipe["architecture"]["hidden_size"] for recipe in recipes}
    rates = {recipe["optimizer"]["learning_rate"] for recipe in recipes}
    if len(widths) > 1 and len(rates) == 1 and not any(recipe.get("learning_rate_by_width") for recipe in recipes):
        found.append("one learning rate for all sizes: the larger may be trained at too high a one")
    decaying = [recipe for recipe in recipes if not _keeps_rate(recipe)]
    if on_the_way and decaying:
        found.append("rates decay: losses on the way are above those of runs that end there")
    if not on_the_way and any("held_out_curve" in recipe for recipe in recipes):
        found.append("points on the way are left out: rates decay, or not all runs of the table have them of one text")
    texts = {run.content.held_out_tokens for run in runs if run.content is not None}
    if len(texts) > 1:
        found.append("its runs are scored on different texts")
    passes = max((_passes(run.content, run) for run in runs if run.content is not None), default=0.0)
    if passes > 1.5:
        found.append(f"up to {passes:.1f} passes over the text: repeated tokens count as new ones")
    if answer.design and answer.place and (factor := _extrapolation(answer.design, answer.place)) > _FAR:
        found.append(f"predicted {factor:.3g} times beyond the data")
    return found


def _keeps_rate(recipe: Mapping[str, Any]) -> bool:
    return recipe["optimizer"]["minimum_learning_rate"] == recipe["optimizer"]["learning_rate"]


def _passes(quality: PretrainingQuality, run: Run) -> float:
    """How often a run has taken its text."""
    text = quality.train_sequences * run.manifest.spec["config"]["sequence_length"]
    return quality.tokens_seen / text if text else math.inf
