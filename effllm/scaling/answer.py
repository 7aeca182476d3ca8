"""What the laws of competing techniques say: exponents, the loss at a target, and who comes first there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from effllm.scaling.fit import Fit, fit, refit
from effllm.scaling.law import Design, Law, Points, best_tokens, identify
from effllm.scaling.noise import NO_NOISE, Noise, noise_of, redrawn

Interval = tuple[float, float]
_LEVEL = (2.5, 97.5)
# Laws speak of the same place where their token counts differ by less than this factor.
_SAME_PLACE = 1.1
NO_SPREAD = (
    "no run is left over to show how far runs scatter: add a size, or seeds of one row, and the tables' rows show it "
    "together"
)
AT_BOUND = "the exponent ran to the end of its range: these losses follow no power law"


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval, each None where `why` says why."""

    value: float | None
    interval: Interval | None = None
    why: str | None = None


@dataclass(frozen=True)
class Answer:
    """What is known of one technique.

    why: why nothing is fitted; then all else is absent. place: N and D of `predicted`. left_out: what the left-out
    error is over. ranks: probability of each rank, the first first, among `rivals`; rank: the one that is sure.
    """

    why: str | None = None
    design: Design | None = None
    fitted: Fit | None = None
    noise: Noise = NO_NOISE
    exponents: tuple[Estimate, ...] = ()
    left_out_error: Estimate = Estimate(None)
    tokens_per_parameter: Estimate = Estimate(None)
    place: tuple[float, float] | None = None
    predicted: Estimate = Estimate(None)
    drawn: np.ndarray | None = field(default=None, repr=False)
    rivals: tuple[str, ...] = ()
    rank: int | None = None
    why_no_rank: str | None = None
    ranks: tuple[float, ...] = ()


def answers(
    techniques: Mapping[str, Points], parameters: float, tokens: float, draws: int, seed: int
) -> dict[str, Answer]:
    """The laws of techniques that compete, at a target of `parameters` and `tokens`.

    The scatter of runs about their laws is taken to be alike for all of them. Intervals are percentiles over `draws`
    data sets drawn from the laws with that scatter, each fitted again.
    """
    found = {name: _fitted(points) for name, points in techniques.items()}
    noise = sum((answer.noise for answer in found.values()), NO_NOISE)
    generator = np.random.default_rng(seed)
    spreads = noise.runs.draws(draws, generator), noise.points.draws(draws, generator)
    for name, answer in found.items():
        if answer.fitted:
            found[name] = _with_intervals(answer, noise, spreads, (parameters, tokens), generator)
    return _ranked(found)


def rank_probabilities(drawn: np.ndarray) -> np.ndarray:
    """From losses (techniques, draws) the probability of each rank, (techniques, ranks); equal losses share theirs."""
    count = len(drawn)
    probabilities = np.zeros((count, count))
    for at in range(count):
        lower = (drawn < drawn[at]).sum(axis=0)
        equal = (drawn == drawn[at]).sum(axis=0)
        for rank in range(count):
            probabilities[at, rank] = np.mean(((lower <= rank) & (rank < lower + equal)) / equal)
    return probabilities


def _fitted(points: Points) -> Answer:
    points = points.finite()
    design = identify(points)
    if isinstance(design, str):
        return Answer(why=design)
    fitted = fit(design)
    return Answer(design=design, fitted=fitted, noise=noise_of(design, fitted), left_out_error=_left_out_error(design))


def _left_out_error(design: Design) -> Estimate:
    """Relative error of the prediction of the largest size (the most tokens, of one size) by a fit to all others."""
    points = design.points
    held = points.tokens if design.kind == "tokens" else points.parameters
    is_last = held > held.max() / 1.01
    rest = identify(points.where(~is_last)) if np.any(~is_last) else "one size"
    if isinstance(rest, str) or rest.kind != design.kind:
        return Estimate(None, why=f"without its {_largest_name(design)} no such law is left to fit")
    last = points.where(is_last)
    last = last.where(last.tokens > last.tokens.max() / 1.01)
    places = zip(last.parameters, last.tokens, strict=True)
    predicted = [float(fit_of.loss(rest.feature_at(*place))) for fit_of in [fit(rest).law] for place in places]
    return Estimate(float(np.exp(np.mean(np.log(predicted) - np.log(last.losses))) - 1))


def _largest_name(design: Design) -> str:
    return "largest token count" if design.kind == "tokens" else "largest size"


def _with_intervals(
    answer: Answer,
    noise: Noise,
    spreads: tuple[np.ndarray, np.ndarray],
    target: tuple[float, float],
    generator: np.random.Generator,
) -> Answer:
    design, fitted = answer.design, answer.fitted
    assert design and fitted
    place = design.at(*target)
    feature = design.feature_at(*place)
    knows_runs = bool(noise.runs.freedom)
    knows_tokens = knows_runs or bool(noise.points.freedom)
    laws = refit(design, fitted, redrawn(design, fitted, spreads, generator)) if knows_tokens else None
    exponents = []
    for at, value in enumerate(fitted.law.exponents):
        is_of_tokens = design.kind == "tokens" or at == 1
        is_known = laws is not None and (knows_runs or is_of_tokens)
        exponents.append(_estimate(float(value), laws.exponents[:, at] if laws and is_known else None))
    if fitted.at_bound:
        exponents = [replace(exponent, interval=None, why=AT_BOUND) for exponent in exponents]
        return replace(
            answer,
            exponents=tuple(exponents),
            place=place,
            tokens_per_parameter=Estimate(None, why=AT_BOUND),
            predicted=Estimate(None, why=AT_BOUND),
        )
    drawn = laws.loss(feature) if laws and knows_runs else None
    return replace(
        answer,
        exponents=tuple(exponents),
        place=place,
        tokens_per_parameter=_tokens_per_parameter(design, fitted.law, laws if knows_runs else None, target[0]),
        predicted=_estimate(float(fitted.law.loss(feature)), drawn),
        drawn=drawn,
    )


def _tokens_per_parameter(design: Design, law: Law, laws: Law | None, parameters: float) -> Estimate:
    if design.kind != "both":
        return Estimate(None, why="it takes the whole law, with N and D of their own")
    drawn = best_tokens(laws, parameters) / parameters if laws else None
    return _estimate(float(best_tokens(law, parameters)) / parameters, drawn)


def _estimate(value: float, drawn: np.ndarray | None) -> Estimate:
    if drawn is None:
        return Estimate(value, why=NO_SPREAD)
    low, high = np.percentile(drawn, _LEVEL)
    # The law of least Huber loss is none of the draws' and may lie beside them.
    return Estimate(value, (min(float(low), value), max(float(high), value)))


def _ranked(found: dict[str, Answer]) -> dict[str, Answer]:
    """With the ranks of those that are predicted at one place by laws of one form."""
    done: dict[str, Answer] = {}
    for name, answer in found.items():
        if answer.why:
            done[name] = answer
            continue
        if answer.drawn is None:
            done[name] = replace(answer, why_no_rank=answer.predicted.why)
            continue
        rivals = [other for other, its in found.items() if its.drawn is not None and _is_comparable(answer, its)]
        if len(rivals) == 1:
            done[name] = replace(answer, why_no_rank="no other technique of the table is predicted at this place")
            continue
        drawn = np.stack([np.asarray(found[other].drawn) for other in rivals])
        ranks = rank_probabilities(drawn)[rivals.index(name)]
        overlapping = [other for other in rivals if other != name and _overlap(answer, found[other])]
        done[name] = replace(
            answer,
            rivals=tuple(rivals),
            ranks=tuple(map(float, ranks)),
            rank=None if overlapping else int(np.argmax(ranks)) + 1,
            why_no_rank=f"its interval overlaps that of {_listed(overlapping)}" if overlapping else None,
        )
    return done


def _is_comparable(one: Answer, other: Answer) -> bool:
    assert one.design and other.design and one.place and other.place
    if one.design.kind != other.design.kind:
        return False
    ratio = one.place[1] / other.place[1]
    return 1 / _SAME_PLACE < ratio < _SAME_PLACE


def _overlap(one: Answer, other: Answer) -> bool:
    assert one.predicted.interval and other.predicted.interval
    (low, high), (others_low, others_high) = one.predicted.interval, other.predicted.interval
    return low <= others_high and others_low <= high


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
