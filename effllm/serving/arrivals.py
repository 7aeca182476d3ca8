"""Times at which requests arrive: gaps of mean 1 from a distribution or a trace, in units of the wanted rate."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from effllm.errors import UserError
from effllm.serving.load import Arrivals

if TYPE_CHECKING:
    import numpy as np


def arrival_times(
    arrivals: Arrivals,
    requests: int,
    rate_per_s: float,
    generator: "np.random.Generator",
    recorded_s: Sequence[float] = (),
) -> list[float]:
    """Seconds from the trace's start, the first request at 0.

    The gaps are those of one draw whatever the rate, so that two rates are the same load, faster and slower. Recorded
    times are stretched to the rate as a whole. What has no rate is refused by ValueError.
    """
    if arrivals.kind in ("closed_loop", "replayed"):
        raise ValueError("requests of a closed loop come when a place is free, replayed ones at their own times")
    gaps = requests - 1
    if arrivals.kind == "recorded":
        times = [time - recorded_s[0] for time in recorded_s]
        if gaps and not times[-1]:
            raise UserError(
                f"arrivals: the first {requests} requests of the trace come at one moment, which has no rate; take "
                "more requests, or choose poisson."
            )
        scale = gaps / times[-1] / rate_per_s if gaps else 0.0
        return [scale * time for time in times]
    if arrivals.kind == "poisson":
        drawn = generator.exponential(1.0, gaps)
    elif arrivals.kind == "gamma":
        drawn = generator.gamma(arrivals.burstiness, 1.0 / arrivals.burstiness, gaps)
    else:
        return [index / rate_per_s for index in range(requests)]
    return [0.0, *(float(time) / rate_per_s for time in drawn.cumsum())]
