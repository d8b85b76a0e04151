"""Differences of two rows that share their seeds: their mean, its 95 % interval, and how many seeds would tell."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

# 97.5 % quantiles of Student's t for 1 to 30 degrees of freedom; 2 stands in for all beyond.
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
    seeds_for_one: int | None
    """Pairs that would narrow the interval to ± 1 at the spread seen here; None beyond 10,000."""


def t_quantile(degrees: int) -> float:
    return T_QUANTILES[degrees - 1] if degrees <= len(T_QUANTILES) else 2.0


def difference(own: Sequence[float | None], other: Sequence[float | None]) -> Difference | None:
    """``own`` − ``other``, seed by seed; None where no seed has both."""
    found = [a - b for a, b in zip(own, other, strict=True) if None not in (a, b)]
    if not found:
        return None
    mean = statistics.mean(found)
    if len(found) == 1:
        return Difference(1, mean, None, None)
    spread = statistics.stdev(found)
    needed = next((n for n in range(2, 10_000) if t_quantile(n - 1) * spread <= math.sqrt(n)), None)
    return Difference(len(found), mean, t_quantile(len(found) - 1) * spread / math.sqrt(len(found)), needed)


def shown(found: Difference | None) -> str:
    """One digit after the point, two where the interval is narrower than one would show."""
    if found is None:
        return "—"
    if found.half_width is None:
        return f"{found.mean:+.1f}"
    digits = 2 if found.half_width < 0.05 else 1
    return f"{found.mean:+.{digits}f} ± {found.half_width:.{digits}f}"
