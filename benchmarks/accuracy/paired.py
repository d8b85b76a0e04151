"""Differences of two rows that share their seeds: the mean and its 95 % interval."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

# 97.5 % quantiles of Student's t for 1 to 30 degrees of freedom; 2 is used beyond.
T_QUANTILES = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


class Difference(NamedTuple):
    """mean ± half_width is the 95 % interval of the mean; half_width is None for a single pair."""

    pairs: int
    mean: float
    half_width: float | None


def t_quantile(degrees: int) -> float:
    return T_QUANTILES[degrees - 1] if degrees <= len(T_QUANTILES) else 2.0


def difference(own: Sequence[float | None], other: Sequence[float | None]) -> Difference | None:
    """Return ``own`` − ``other`` over the seeds that have both, or None without such a seed."""
    found = [a - b for a, b in zip(own, other, strict=True) if None not in (a, b)]
    if not found:
        return None
    mean = statistics.mean(found)
    if len(found) == 1:
        return Difference(1, mean, None)
    spread = statistics.stdev(found)
    return Difference(len(found), mean, t_quantile(len(found) - 1) * spread / math.sqrt(len(found)))


def shown(found: Difference | None) -> str:
    """Format with one decimal, or with two if the interval is narrower than 0.05."""
    if found is None:
        return "—"
    if found.half_width is None:
        return f"{found.mean:+.1f}"
    digits = 2 if found.half_width < 0.05 else 1
    return f"{found.mean:+.{digits}f} ± {found.half_width:.{digits}f}"
