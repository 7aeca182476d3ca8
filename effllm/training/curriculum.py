"""The order in which a pretraining run takes the windows of its stream: a function of its settings and its seed."""

import numpy as np
import torch

from effllm.training.settings import Curriculum, Pacing


def random_order(windows: int, samples_per_step: int, steps: int, seed: int) -> np.ndarray:
    """Numbers of the windows as the Trainer shuffles them, int64 (steps * samples_per_step,).

    A permutation for each pass, without the last, partial step: within one pass those that a run in random order takes.
    """
    wanted, in_a_pass = steps * samples_per_step, windows // samples_per_step * samples_per_step
    passes = []
    for number in range(-(-wanted // in_a_pass)):
        generator = torch.Generator().manual_seed(seed + number)
        passes.append(torch.randperm(windows, generator=generator).numpy()[:in_a_pass])
    return np.concatenate(passes)[:wanted]


def training_order(
    curriculum: Curriculum, difficulty: np.ndarray, samples_per_step: int, steps: int, seed: int
) -> np.ndarray:
    """Numbers of the windows in the order of training, int64 (steps * samples_per_step,).

    The windows of the ordered steps are those of the same steps in random order. `difficulty` is one value for each
    window of the stream; windows without one (NaN) come last, equal ones in random order.
    """
    order = random_order(len(difficulty), samples_per_step, steps, seed)
    count = curriculum.steps(steps) * samples_per_step
    drawn = order[:count]
    values = difficulty[drawn]
    ranked = drawn[np.argsort(values if curriculum.first == "easy" else -values, kind="stable")]
    segments = [ranked[number :: curriculum.segments] for number in range(curriculum.segments)]
    if curriculum.pacing is not None:
        generator = np.random.default_rng(seed)
        segments = [paced(segment, curriculum.pacing, samples_per_step, generator) for segment in segments]
    return np.concatenate([*segments, order[count:]])


def available(pacing: Pacing, share_of_steps: float) -> float:
    """Share of the windows from which a step draws."""
    progress = min(1.0, share_of_steps / pacing.full_at)
    return pacing.start + (1 - pacing.start) * progress**pacing.exponent


def paced(ranked: np.ndarray, pacing: Pacing, samples_per_step: int, generator: np.random.Generator) -> np.ndarray:
    """As many windows as `ranked`, each step's drawn from the share of them that is available by then.

    Those that were drawn come again only once all available ones were.
    """
    pool = np.empty_like(ranked)
    chosen = np.empty_like(ranked)
    waiting = opened = done = 0
    while done < len(ranked):
        share = min(int(np.ceil(available(pacing, done / len(ranked)) * len(ranked))), len(ranked))
        pool[waiting : waiting + share - opened] = ranked[opened:share]
        waiting, opened = waiting + share - opened, share
        step_end = min(done + samples_per_step, len(ranked))
        while done < step_end:
            if not waiting:
                pool[:opened], waiting = ranked[:opened], opened
            count = min(step_end - done, waiting)
            places = generator.choice(waiting, count, replace=False)
            chosen[done : done + count] = pool[places]
            # What stands at the end moves to the places that have become free.
            rest = waiting - count
            pool[places[places < rest]] = pool[np.setdiff1d(np.arange(rest, waiting), places)]
            done, waiting = done + count, rest
    return chosen
