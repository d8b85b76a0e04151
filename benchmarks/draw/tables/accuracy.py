"""Tables of docs/accuracy.md and of the accuracy log, from finished runs. Rows without a run are left out."""

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from u2pl_fast.data.folder import CAMVID_CLASSES

from ...accuracy.experiments import (
    ABLATIONS,
    ALL,
    LONGER,
    MSRC_CLASSES,
    MSRC_LABELS,
    MSRC_MAIN_ROWS,
    MSRC_OTHER_LABELS,
    MSRC_ROWS,
    MSRC_SEEDS,
    ROWS,
    title,
)
from ...accuracy.paired import difference, shown
from ...accuracy.runs import current
from ...accuracy.scores import BASE, SEEDS, Runs, minutes, msrc_scores, score
from .markdown import markdown

SCREENING = "msrc-screening.json"  # runs of one seed that are not among the experiments
BASELINE = "baseline"


def _runs(folder: Path) -> Runs:
    """Return the finished runs of the device that ``folder`` names; they lie beside it."""
    return current(folder.parent / "accuracy" / folder.name)


def _mean(values: list[float | None], form: str) -> str:
    """Format the mean and, of several values, half the distance between the largest and the smallest."""
    known = [v for v in values if v is not None]
    if not known:
        return "—"
    text = format(statistics.mean(known), form)
    return f"{text} ± {format((max(known) - min(known)) / 2, form.lstrip('+'))}" if len(known) > 1 else text


def _methods(runs: Runs, dataset: str, rows: Iterable[tuple[str, int | str]], alone: tuple[str, int | str]) -> str:
    """Compare rows, each with its number of labels, with ``alone``: means, paired differences, scores by seed."""
    seeds = MSRC_SEEDS if dataset == "msrc" else SEEDS
    baseline = [score(runs, dataset, *alone, seed) for seed in seeds]
    table = []
    for row, count in rows:
        own = [score(runs, dataset, row, count, seed) for seed in seeds]
        known = [s for s in own if s is not None]
        if not known:
            continue
        gain = BASELINE if (row, count) == alone else shown(difference(own, baseline))
        name = "all labels" if count == ALL else title(row)
        table.append([name, f"{statistics.mean(known):.1f}", gain, ", ".join(f"{s:.1f}" for s in known)])
    return markdown(["method", "mIoU, %", "gain", "each seed"], table, keep_empty=True)


def accuracy(folder: Path) -> str:
    """CamVid, 23 labels."""
    rows = [*((row, 23) for row in ROWS), ("supervised", ALL)]
    return _methods(_runs(folder), "camvid", rows, ("supervised", 23))


def accuracy_longer(folder: Path) -> str:
    """Draw the table of runs with more steps."""
    rows = [*((row, 23) for row in LONGER), ("supervised-longer", ALL)]
    return _methods(_runs(folder), "camvid", rows, ("supervised-longer", 23))


def accuracy_msrc(folder: Path) -> str:
    """MSRC-21 with the number of labels that every row is trained with."""
    rows = [*((row, MSRC_LABELS) for row in MSRC_ROWS), ("supervised", ALL)]
    return _methods(_runs(folder), "msrc", rows, ("supervised", MSRC_LABELS))


def accuracy_msrc_labels(folder: Path) -> str:
    """MSRC-21 with fewer and more labels."""
    runs = _runs(folder)
    tables = [
        _methods(runs, "msrc", [(row, count) for row in MSRC_MAIN_ROWS], ("supervised", count))
        for count in MSRC_OTHER_LABELS
        if any(msrc_scores(runs, "supervised", count))
    ]
    return "\n".join(tables)


def accuracy_headline(folder: Path) -> str:
    """Labels alone, self-training and U²PL on it: means over the seeds, differences, and minutes of one core."""
    runs, table = _runs(folder), []
    titles = ("labeled images only", "self-training", "self-training and U²PL")
    before = None
    for name, row in zip(titles, MSRC_MAIN_ROWS, strict=True):
        own = msrc_scores(runs, row, MSRC_LABELS)
        known = [s for s in own if s is not None]
        if known:
            gain = shown(difference(own, before)) if before else BASELINE
            table.append([name, f"{statistics.mean(known):.1f}", gain, f"{sum(minutes(runs, row)):.0f}"])
        before = own
    header = ["method", "mIoU, %", "gain over the row above", "minutes, one core"]
    return markdown(header, table, keep_empty=True)


# What is added, to which row, and the row with it.
PARTS = (
    ("L_c, on labeled pixels", "supervised", "contrast-labels"),
    ("unreliable pixels as negatives of L_c", "contrast-labels", "contrast-negatives"),
    ("L_u, on pseudo-labels", "supervised", "self-training-8"),
    ("L_c alone, on pseudo-labels", "supervised", "contrast-anchors-8"),
    ("L_u, on pseudo-labels", "contrast-anchors-8", "u2pl-self-training-8"),
    ("L_c, without unreliable pixels", "self-training-8", "contrast-self-training-8"),
    ("unreliable pixels as negatives of L_c", "contrast-self-training-8", "u2pl-self-training-8"),
    ("L_c, with unreliable pixels", "self-training-8", "u2pl-self-training-8"),
)


def accuracy_msrc_parts(folder: Path) -> str:
    """Draw what each part of U²PL adds, over the seeds that have both rows."""
    runs, table = _runs(folder), []
    for added, before, after in PARTS:
        scores = [msrc_scores(runs, row, MSRC_LABELS) for row in (before, after)]
        pairs = [pair for pair in zip(*scores, strict=True) if None not in pair]
        if pairs:
            low, high = (statistics.mean(own) for own in zip(*pairs, strict=True))
            gain = shown(difference(scores[1], scores[0]))
            table.append([added, title(before), f"{low:.1f}", f"{high:.1f}", gain, str(len(pairs))])
    return markdown(["added", "to", "before", "after", "difference", "seeds"], table, keep_empty=True)


def accuracy_msrc_settings(folder: Path) -> str:
    """One change at a time, one seed: the screening runs that name the run they change as their ``base``."""
    path = folder.parent / "accuracy" / SCREENING
    runs = json.loads(path.read_text())["runs"] if path.exists() else []
    of_name = {run["name"]: run for run in runs if run["settings"]["seed"] == 0}
    table = []
    for run in of_name.values():
        if "base" in run:
            base = of_name[run["base"]]
            scores = [100 * base["miou"], 100 * run["miou"]]
            table.append(
                [f"{base['title']}: {run['changed']}", *map(_number, scores), f"{scores[1] - scores[0]:+z.1f}"]
            )
    return markdown(["change", "before", "after", "difference"], table, keep_empty=True)


def _classes(runs: Runs, names: Sequence[str], seeds: Sequence[int], columns: dict[str, str]) -> str:
    """Return the IoU of each class, the mean over the seeds that have all columns.

    ``columns``: by title, an experiment's name without its seed.
    """
    shared = [seed for seed in seeds if all(f"{experiment}-seed{seed}" in runs for experiment in columns.values())]
    if not shared:
        return markdown(["class", *columns], [], keep_empty=True)
    ious = [[runs[f"{experiment}-seed{seed}"]["iou_per_class"] for seed in shared] for experiment in columns.values()]
    means = [[100 * statistics.mean(of_class) for of_class in zip(*own, strict=True)] for own in ious]
    rows = [[name, *(f"{iou:.1f}" for iou in of_class)] for name, *of_class in zip(names, *means, strict=True)]
    return markdown([f"seeds {', '.join(map(str, shared))}", *columns], rows, keep_empty=True)


def accuracy_classes(folder: Path) -> str:
    """CamVid with 23 labels."""
    columns = {title(row): f"camvid-23-{row}" for row in ROWS} | {"all labels": f"camvid-{ALL}-supervised"}
    return _classes(_runs(folder), CAMVID_CLASSES, SEEDS, columns)


def accuracy_msrc_classes(folder: Path) -> str:
    """MSRC-21: labels alone, self-training, and U²PL on it."""
    columns = {title(row): f"msrc-{MSRC_LABELS}-{row}" for row in MSRC_MAIN_ROWS}
    return _classes(_runs(folder), MSRC_CLASSES, MSRC_SEEDS, columns)


def accuracy_ablations(folder: Path) -> str:
    """Each change of ``lean`` alone, CamVid, one seed."""
    runs = _runs(folder)
    base = score(runs, "camvid", BASE, 23, 0)
    rows = [] if base is None else [["`lean`, unchanged", _number(base), BASELINE]]
    for name, flags in ABLATIONS.items():
        if (own := score(runs, "camvid", name, 23, 0)) is not None and base is not None:
            rows.append([f"`{' '.join(flags)}`", _number(own), f"{own - base:+.1f}"])
    return markdown(["change", "mIoU", "difference"], rows, keep_empty=True)


def accuracy_quality(folder: Path) -> str:
    """Pseudo-labels of the teacher against hidden masks, in the middle of training."""
    runs = _runs(folder)
    columns = {
        "all labels": "pseudo_accuracy",
        "reliable": "pseudo_accuracy_reliable",
        "unreliable": "pseudo_accuracy_unreliable",
        "negatives": "pseudo_negatives_right",
        "negatives without r_l": "pseudo_negatives_right_unranked",
    }
    rows = []
    for row in list(ROWS)[1:]:
        found = [_middle(runs.get(f"camvid-23-{row}-seed{seed}"), list(columns.values())) for seed in SEEDS]
        if any(found):
            cells = [_mean([None if f is None else 100 * f[key] for f in found], ".1f") for key in columns.values()]
            rows.append([title(row), *cells])
    return markdown(["right, %", *columns], rows, keep_empty=True)


def _middle(run: dict[str, Any] | None, names: list[str]) -> dict[str, float] | None:
    """Return the evaluation nearest to the middle of the run that has all of ``names``."""
    complete = [e for e in (run or {}).get("evaluations", []) if all(name in e for name in names)]
    return min(complete, key=lambda e: abs(e["step"] - run["steps"] / 2), default=None) if run else None


def _number(value: float | None) -> str:
    return "—" if value is None else f"{value:.1f}"


# Each table and where its numbers come from; {device} is the second word of the marker.
TABLES = {
    accuracy: "benchmarks/results/accuracy/{device}",
    accuracy_longer: "benchmarks/results/accuracy/{device}",
    accuracy_classes: "benchmarks/results/accuracy/{device}",
    accuracy_ablations: "benchmarks/results/accuracy/{device}",
    accuracy_quality: "benchmarks/results/accuracy/{device}",
    accuracy_headline: "benchmarks/results/accuracy/{device}",
    accuracy_msrc: "benchmarks/results/accuracy/{device}",
    accuracy_msrc_labels: "benchmarks/results/accuracy/{device}",
    accuracy_msrc_parts: "benchmarks/results/accuracy/{device}",
    accuracy_msrc_classes: "benchmarks/results/accuracy/{device}",
    accuracy_msrc_settings: "benchmarks/results/accuracy/msrc-screening.json",
}
