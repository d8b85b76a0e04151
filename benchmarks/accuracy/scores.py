"""What finished runs scored: by dataset, row, number of labels and seed, and against each other."""

import statistics
from typing import Any

from .experiments import ALL, MSRC_LABELS, MSRC_ROWS, MSRC_SEEDS, msrc_experiment

Runs = dict[str, dict[str, Any]]
SEEDS = (0, 1, 2)
BASE = "u2pl-lean"


def score(runs: Runs, dataset: str, row: str, labels: int | str, seed: int) -> float | None:
    """mIoU at the end of a run, in per cent."""
    run = runs.get(f"{dataset}-{labels}-{row}-seed{seed}")
    return None if run is None else 100 * run["miou"]["last"]


def msrc_scores(runs: Runs, row: str, labels: int | str) -> list[float | None]:
    """Those of each seed of a row on photographs."""
    return [score(runs, "msrc", row, labels, seed) for seed in MSRC_SEEDS]


def share_closed(runs: Runs, dataset: str, row: str, labels: int, alone: str) -> float | None:
    """(method − labels only) ÷ (all labels − labels only), each a mean over the seeds that have all three.

    Not a mean of shares: a seed whose few labels are nearly as good as all would outweigh the others.
    """
    keys = ((row, labels), (alone, labels), (alone, ALL))
    of_seeds = [[score(runs, dataset, *key, seed) for key in keys] for seed in SEEDS]
    complete = [scores for scores in of_seeds if None not in scores]
    if not complete:
        return None
    own, low, high = map(statistics.mean, zip(*complete, strict=True))
    return (own - low) / (high - low) if high > low else None


def best_rival(runs: Runs, labels: int) -> str | None:
    """The row with the highest mean, of those with the most seeds; neither labels alone nor U²PL.

    Rivals that one seed has dismissed do not narrow the comparison to that seed.
    """
    rivals = [row for row in MSRC_ROWS if row != "supervised" and not row.startswith("u2pl")]
    scores = {row: msrc_scores(runs, row, labels) for row in rivals}
    scores = {row: known for row, own in scores.items() if (known := [s for s in own if s is not None])}
    most = max(map(len, scores.values()), default=0)
    complete = {row: statistics.mean(own) for row, own in scores.items() if len(own) == most}
    return max(complete, key=complete.__getitem__, default=None)


def minutes(runs: Runs, row: str) -> tuple[float, float]:
    """Minutes of the run whose checkpoint a row of ``MSRC_ROWS`` reads (0 where it reads none), and of the row itself.

    They are of the quickest seed: some of the others shared their cores with other work.
    """

    def quickest(names: list[str]) -> float:
        return min(runs[name]["seconds"] for name in names if name in runs) / 60

    own = [msrc_experiment(row, MSRC_LABELS, seed) for seed in MSRC_SEEDS]
    needed = [experiment.needs for experiment in own if experiment.needs is not None]
    return quickest(needed) if needed else 0.0, quickest([experiment.name for experiment in own])
