"""Scores of finished runs, by data set, row, number of labels and seed."""

from typing import Any

from .experiments import MSRC_LABELS, MSRC_SEEDS, msrc_experiment

Runs = dict[str, dict[str, Any]]
SEEDS = (0, 1, 2)
BASE = "u2pl-lean"


def score(runs: Runs, dataset: str, row: str, labels: int | str, seed: int) -> float | None:
    """Return the mIoU at the end of a run, in percent."""
    run = runs.get(f"{dataset}-{labels}-{row}-seed{seed}")
    return None if run is None else 100 * run["miou"]["last"]


def msrc_scores(runs: Runs, row: str, labels: int | str) -> list[float | None]:
    """Return the score of each seed of a row on MSRC-21."""
    return [score(runs, "msrc", row, labels, seed) for seed in MSRC_SEEDS]


def minutes(runs: Runs, row: str) -> tuple[float, float]:
    """Return the minutes of the run whose checkpoint a row of ``MSRC_ROWS`` reads (or 0), and of the row's own run.

    The fastest seed counts: other runs shared their cores with other work.
    """

    def fastest(names: list[str]) -> float:
        return min(runs[name]["seconds"] for name in names if name in runs) / 60

    own = [msrc_experiment(row, MSRC_LABELS, seed) for seed in MSRC_SEEDS]
    needed = [experiment.needs for experiment in own if experiment.needs is not None]
    return fastest(needed) if needed else 0.0, fastest([experiment.name for experiment in own])
