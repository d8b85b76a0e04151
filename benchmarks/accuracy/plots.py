"""``python -m benchmarks.accuracy.plots --out docs/plots``: draw the figures of docs/accuracy.md from finished runs."""

import argparse
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from .experiments import ABLATIONS, ALL, MSRC_LABELS, MSRC_ROWS, MSRC_SEEDS, ROWS, title
from .runs import RESULTS, current
from .scores import BASE, SEEDS, Runs, minutes, score

COLORS = {"supervised": "#7f7f7f", "mean-teacher": "#1f77b4", "u2pl-lean": "#2ca02c", "u2pl-paper": "#d62728"}
EVALUATED = ("miou_teacher", "miou_student")  # the first that an evaluation has
GAIN = "gain over the end of labels alone, mIoU"


def plain(row: str) -> str:
    """Return the title of a row without Markdown."""
    return title(row).replace("`", "")


def _curve(run: dict, names: tuple[str, ...]) -> dict[int, float]:
    """Return percent by step, of the first of ``names`` that an evaluation has."""
    return {e["step"]: 100 * next(e[n] for n in names if n in e) for e in run["evaluations"] if set(names) & set(e)}


def _lines(axis: Axes, runs: list[dict], names: tuple[str, ...], label: str, color: str, style: str = "-") -> None:
    """Draw each run as a thin line and their mean as a thick one, of the first of ``names`` that an evaluation has."""
    points: dict[int, list[float]] = {}
    for run in runs:
        own = _curve(run, names)
        axis.plot(list(own), list(own.values()), style, color=color, alpha=0.35, linewidth=0.8)
        for step, value in own.items():
            points.setdefault(step, []).append(value)
    if points:
        steps = sorted(points)
        means = [statistics.mean(points[step]) for step in steps]
        axis.plot(steps, means, style, marker="o", ms=3, color=color, linewidth=2, label=label)


def curves(runs: Runs, axis: Axes) -> None:
    def of(row: str, labels: int | str) -> list[dict]:
        return [runs[n] for seed in SEEDS if (n := f"camvid-{labels}-{row}-seed{seed}") in runs]

    for row in ROWS:
        _lines(axis, of(row, 23), EVALUATED, f"{plain(row)}, 23 labels", COLORS[row])
    _lines(axis, of("supervised", ALL), ("miou_student",), "all labels", "black", "--")
    axis.set(xlabel="step", ylabel="val mIoU, %", title="CamVid: each seed, and their mean")


def gains(runs: Runs, axis: Axes) -> None:
    """Draw the gain of each seed: seeds differ by more than methods."""
    rows = [(row, 23, COLORS[row]) for row in ROWS if row != "supervised"] + [("supervised", ALL, "black")]
    for place, (row, labels, color) in enumerate(rows):
        for seed in SEEDS:
            own, low = (score(runs, "camvid", *key, seed) for key in ((row, labels), ("supervised", 23)))
            if None not in (own, low):
                axis.bar(seed + 0.2 * (place - 1.5), own - low, 0.2, color=color)
    axis.axhline(0, color="black", linewidth=0.8)
    names = [f"seed {seed}" for seed in SEEDS]
    axis.set(ylabel="gain over labels alone, mIoU", title="gain of each seed (black: all labels)")
    axis.set_xticks(SEEDS, names)


def quality(runs: Runs, axis: Axes) -> None:
    own = [runs[n] for seed in SEEDS if (n := f"camvid-23-{BASE}-seed{seed}") in runs]
    for name, label, color in (
        ("pseudo_accuracy_reliable", "label of a reliable pixel", "#2ca02c"),
        ("pseudo_accuracy", "label of any pixel", "#1f77b4"),
        ("pseudo_accuracy_unreliable", "label of an unreliable pixel", "#d62728"),
        ("pseudo_negatives_right", "negative of an unreliable pixel", "#9467bd"),
    ):
        _lines(axis, own, (name,), label, color)
    axis.set(xlabel="step", ylabel="% right", title="teacher compared with hidden masks", ylim=(None, 101))


def ablations(runs: Runs, axis: Axes) -> None:
    base = score(runs, "camvid", BASE, 23, 0)
    found = {name: score(runs, "camvid", name, 23, 0) for name in ABLATIONS}
    gains = {name: value - base for name, value in found.items() if None not in (value, base)}
    if not gains:
        return
    order = sorted(gains, key=gains.__getitem__)
    axis.barh(order, [gains[name] for name in order], color="#1f77b4")
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set(xlabel="difference to lean, mIoU (one seed)", title="one change at a time")


def photographs(runs: Runs, axis: Axes) -> None:
    """Draw gains on MSRC-21 over steps: the mean over seeds, in a band from the lowest to the highest."""
    for place, (row, own) in enumerate(_msrc(runs).items()):
        scores = _gains(runs, own)
        label = f"{plain(row)}, {len(own)} seed{'s' if len(own) > 1 else ''}"
        _mean_line(axis, list(scores), scores, place, label)
        if len(own) > 1:
            low, high = list(map(min, scores.values())), list(map(max, scores.values()))
            axis.fill_between(list(scores), low, high, color=f"C{place}", alpha=0.12)
    axis.set(xlabel="step", ylabel=GAIN, title=f"MSRC-21, {MSRC_LABELS} labels: mean and range over seeds")


def photographs_in_time(runs: Runs, axis: Axes) -> None:
    """Draw the same over minutes of one core, including the run whose checkpoint a row reads."""
    for place, (row, own) in enumerate(_msrc(runs).items()):
        scores = _gains(runs, own)
        earlier, whole = minutes(runs, row)
        of_steps = [earlier + whole * step / own[0]["steps"] for step in scores]
        _mean_line(axis, of_steps, scores, place, plain(row))
    axis.set(xlabel="minutes of one core", ylabel=GAIN, title="the same means over time", xlim=(0, None))


def _msrc(runs: Runs) -> dict[str, list[dict]]:
    """Return the finished runs of each row with few labels, over the seeds that have a run on labels alone."""

    def of(row: str) -> dict[int, dict]:
        names = {seed: f"msrc-{MSRC_LABELS}-{row}-seed{seed}" for seed in MSRC_SEEDS}
        return {seed: runs[name] for seed, name in names.items() if name in runs}

    compared = of("supervised").keys()
    found = {row: [run for seed, run in of(row).items() if seed in compared] for row in MSRC_ROWS}
    return {row: own for row, own in found.items() if own}


def _gains(runs: Runs, own: list[dict]) -> dict[int, list[float]]:
    """Return by step, for each run, its mIoU less that of labels alone at the end with the same seed.

    The draw of labels matters more than the method, and some rows lack seeds.
    """
    curves = [_curve(run, EVALUATED) for run in own]
    ends = [score(runs, "msrc", "supervised", MSRC_LABELS, run["seed"]) for run in own]
    steps = [step for step in curves[0] if all(step in curve for curve in curves)]
    return {step: [curve[step] - end for curve, end in zip(curves, ends, strict=True)] for step in steps}


def _mean_line(axis: Axes, x: Sequence[float], scores: dict[int, list[float]], place: int, label: str) -> None:
    """Draw a mean, dashed if it is of a single seed."""
    style = "-" if any(len(of_step) > 1 for of_step in scores.values()) else "--"
    means = [statistics.mean(of_step) for of_step in scores.values()]
    axis.plot(x, means, style, marker="o", ms=3, linewidth=2, color=f"C{place}", label=label)


def draw(panels: list[Callable[[Runs, Axes], None]], runs: Runs, path: Path) -> bool:
    """Save the panels to ``path``; return False if there is nothing to draw."""
    figure, axes = plt.subplots(
        1, len(panels), figsize=(6.5 * len(panels), 4.5), constrained_layout=True, squeeze=False
    )
    for panel, axis in zip(panels, axes[0], strict=True):
        panel(runs, axis)
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
    drawn = any(axis.lines or axis.patches for axis in axes[0])
    if drawn:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=90)
    plt.close(figure)
    return drawn


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy.plots", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/plots"))
    parser.add_argument("--results", type=Path, default=RESULTS / "cpu", help="folder of finished runs")
    args = parser.parse_args(argv)
    runs = current(args.results)
    if not runs:
        parser.error(f"--results: no finished run in {args.results}; train some with python -m benchmarks.accuracy")
    for name, panels in (
        ("accuracy", [curves, gains, quality]),
        ("accuracy-ablations", [ablations]),
        ("accuracy-msrc", [photographs, photographs_in_time]),
    ):
        if draw(panels, runs, args.out / f"{name}.png"):
            print(args.out / f"{name}.png")


if __name__ == "__main__":
    main()
