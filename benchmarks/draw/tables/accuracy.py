"""Tables of docs/accuracy.md, from the runs that have finished. What has not is shown empty."""

import json
import statistics
from collections.abc import Sequence
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
)
from ...accuracy.paired import difference, shown
from ...accuracy.runs import current
from ...accuracy.scores import BASE, SEEDS, Runs, best_rival, minutes, msrc_scores, score, share_closed
from .markdown import markdown

SCREENING = "msrc-screening.json"  # runs of one seed that are no experiments


def _runs(folder: Path) -> Runs:
    """``folder`` is that of the device among the results; those of trainings lie beside it."""
    return current(folder.parent / "accuracy" / folder.name)


def _mean(values: list[float | None], form: str) -> str:
    """Mean and, of several, half the distance between the largest and the smallest."""
    known = [v for v in values if v is not None]
    if not known:
        return "—"
    text = format(statistics.mean(known), form)
    return f"{text} ± {format((max(known) - min(known)) / 2, form.lstrip('+'))}" if len(known) > 1 else text


def _methods(runs: Runs, dataset: str, labels: int, rows: Sequence[str]) -> str:
    """``rows``: labels alone first."""
    table = []
    alone = rows[0]
    for row, count in (*((row, labels) for row in rows), (alone, ALL)):
        scores = [score(runs, dataset, row, count, seed) for seed in SEEDS]
        compared = count != ALL and row != alone
        low = [score(runs, dataset, alone, labels, seed) for seed in SEEDS]
        gains = [a - b if compared and None not in (a, b) else None for a, b in zip(scores, low, strict=True)]
        share = share_closed(runs, dataset, row, labels, alone) if compared else None
        seconds = [
            run["seconds"] / run["steps"]
            for seed in SEEDS
            if (run := runs.get(f"{dataset}-{count}-{row}-seed{seed}")) is not None
        ]
        table.append(
            [
                f"{row}, {'all' if count == ALL else count} labels",
                *("—" if s is None else f"{s:.1f}" for s in scores),
                _mean(scores, ".1f"),
                _mean(gains, "+.1f"),
                "—" if share is None else f"{100 * share:.0f} %",
                f"{statistics.median(seconds):.2f}" if seconds else "—",
            ]
        )
    header = ["", *(f"seed {seed}" for seed in SEEDS), "mean", "gain", "of the headroom", "s a step"]
    return markdown(header, table, keep_empty=True)


def accuracy(folder: Path) -> str:
    """CamVid, 23 labels."""
    return _methods(_runs(folder), "camvid", 23, list(ROWS))


def accuracy_longer(folder: Path) -> str:
    """The same with more steps."""
    return _methods(_runs(folder), "camvid", 23, list(LONGER))


def _msrc(folder: Path, rows: Sequence[tuple[str, int | str]]) -> str:
    """MSRC-21: scores, and paired differences to labels alone and to the best rival. What has no run is left out."""
    runs, table = _runs(folder), []
    for row, count in rows:
        own = msrc_scores(runs, row, count)
        known = [s for s in own if s is not None]
        if not known:
            continue
        gain, beyond = None, None
        if row != "supervised":
            gain = difference(own, msrc_scores(runs, "supervised", count))
        if row.startswith("u2pl") and (rival := best_rival(runs, count)):
            beyond = difference(own, msrc_scores(runs, rival, count))
        table.append(
            [
                f"{row}, {'all' if count == ALL else count} labels",
                *(_number(s) for s in own),
                f"{statistics.mean(known):.1f}",
                shown(gain),
                shown(beyond),
                str(gain.seeds_for_one) if gain and gain.seeds_for_one else "—",
            ]
        )
    header = ["", *(f"seed {seed}" for seed in MSRC_SEEDS), "mean", "− labels alone", "− best rival", "seeds for ± 1"]
    return markdown(header, table, keep_empty=True)


def accuracy_msrc(folder: Path) -> str:
    """The number of labels that every row is trained with."""
    return _msrc(folder, [*((row, MSRC_LABELS) for row in MSRC_ROWS), ("supervised", ALL)])


def accuracy_headline(folder: Path) -> str:
    """Labels alone, self-training and U²PL on it: means over the seeds, differences, and minutes of one core."""
    runs, table = _runs(folder), []
    titles = ("labeled images only", "self-training", "self-training and U²PL")
    before = None
    for title, row in zip(titles, MSRC_MAIN_ROWS, strict=True):
        own = msrc_scores(runs, row, MSRC_LABELS)
        known = [s for s in own if s is not None]
        if known:
            gain = shown(difference(own, before)) if before else "—"
            table.append([title, f"{statistics.mean(known):.1f}", gain, f"{sum(minutes(runs, row)):.0f}"])
        before = own
    header = ["method", "mIoU, %", "gain over the row above", "minutes, one core"]
    return markdown(header, table, keep_empty=True)


def accuracy_msrc_labels(folder: Path) -> str:
    """Fewer and more labels."""
    return _msrc(folder, [(row, count) for count in MSRC_OTHER_LABELS for row in MSRC_MAIN_ROWS])


# What is added, to which row, and which row that makes.
PARTS = (
    ("L_c on the labeled pixels", "supervised", "contrast-labels"),
    ("unreliable pixels as its negatives", "contrast-labels", "contrast-negatives"),
    ("pseudo-labeled pixels in L_u", "supervised", "self-training-8"),
    ("pseudo-labeled pixels in L_c alone", "supervised", "contrast-anchors-8"),
    ("L_u, where L_c has them", "contrast-anchors-8", "u2pl-self-training-8"),
    ("L_c, where L_u has them", "self-training-8", "u2pl-self-training-8"),
    ("of that, L_c without unreliable pixels", "self-training-8", "contrast-self-training-8"),
    ("and unreliable pixels as its negatives", "contrast-self-training-8", "u2pl-self-training-8"),
)


def accuracy_msrc_parts(folder: Path) -> str:
    """What each part of U²PL adds, over the seeds that have both rows. What has no run is left out."""
    runs, table = _runs(folder), []
    for added, before, after in PARTS:
        scores = [msrc_scores(runs, row, MSRC_LABELS) for row in (before, after)]
        pairs = [pair for pair in zip(*scores, strict=True) if None not in pair]
        if pairs:
            low, high = (statistics.mean(own) for own in zip(*pairs, strict=True))
            gain = shown(difference(scores[1], scores[0]))
            table.append([added, f"{before} {low:.1f}", f"{after} {high:.1f}", gain, str(len(pairs))])
    return markdown(["added", "before", "after", "difference", "seeds"], table, keep_empty=True)


def accuracy_msrc_settings(folder: Path) -> str:
    """One change at a time, one seed: those screening runs that name the run they change as their ``base``."""
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
    """IoU of each class in the mean over the seeds that have all columns, each an experiment's name up to its seed."""
    shared = [seed for seed in seeds if all(f"{experiment}-seed{seed}" in runs for experiment in columns.values())]
    if not shared:
        return markdown(["class", *columns], [], keep_empty=True)
    ious = [[runs[f"{experiment}-seed{seed}"]["iou_per_class"] for seed in shared] for experiment in columns.values()]
    means = [[100 * statistics.mean(of_class) for of_class in zip(*own, strict=True)] for own in ious]
    rows = [[name, *(f"{iou:.1f}" for iou in of_class)] for name, *of_class in zip(names, *means, strict=True)]
    return markdown([f"seed {', '.join(map(str, shared))}", *columns], rows, keep_empty=True)


def accuracy_classes(folder: Path) -> str:
    """CamVid with 23 labels."""
    columns = {row: f"camvid-23-{row}" for row in ROWS} | {"all labels": f"camvid-{ALL}-supervised"}
    return _classes(_runs(folder), CAMVID_CLASSES, SEEDS, columns)


def accuracy_msrc_classes(folder: Path) -> str:
    """Photographs: labels alone, the best rival, and U²PL on it."""
    columns = {row: f"msrc-{MSRC_LABELS}-{row}" for row in MSRC_MAIN_ROWS}
    return _classes(_runs(folder), MSRC_CLASSES, MSRC_SEEDS, columns)


def accuracy_ablations(folder: Path) -> str:
    """Each change of ``lean`` alone, CamVid, one seed. What has no run is left out."""
    runs = _runs(folder)
    base = score(runs, "camvid", BASE, 23, 0)
    rows = [["`lean`, unchanged", _number(base), ""]]
    for name, flags in ABLATIONS.items():
        if (own := score(runs, "camvid", name, 23, 0)) is not None and base is not None:
            rows.append([f"`{' '.join(flags)}`", _number(own), f"{own - base:+.1f}"])
    return markdown(["change", "mIoU", "difference"], rows, keep_empty=True)


def accuracy_quality(folder: Path) -> str:
    """Pseudo-labels of the teacher against the hidden masks, in the middle of training."""
    runs = _runs(folder)
    columns = {
        "accuracy": "pseudo_accuracy",
        "of reliable pixels": "pseudo_accuracy_reliable",
        "of unreliable ones": "pseudo_accuracy_unreliable",
        "negatives that are right": "pseudo_negatives_right",
        "without the low rank": "pseudo_negatives_right_unranked",
    }
    rows = []
    for row in list(ROWS)[1:]:
        found = [_middle(runs.get(f"camvid-23-{row}-seed{seed}"), list(columns.values())) for seed in SEEDS]
        rows.append(
            [row, *(_mean([None if f is None else 100 * f[key] for f in found], ".1f") for key in columns.values())]
        )
    return markdown(["% of pixels, or of (pixel, class) pairs", *columns], rows, keep_empty=True)


def _middle(run: dict[str, Any] | None, names: list[str]) -> dict[str, float] | None:
    """The evaluation nearest to the middle of the run that has all of them."""
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
