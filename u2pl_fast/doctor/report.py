"""Print the doctor's findings, or return them for JSON."""

from collections import Counter
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..data import PairDataset
from .evidence import Evidence
from .findings import SEVERITIES, Finding, counted

MOST_EXAMPLES = 5
MOST_ROWS = 40  # rows of the table at most: classes with the fewest labeled images
COLORS = {"error": "bold red", "warning": "yellow", "ok": "green"}


def as_json(evidence: Evidence, found: list[Finding]) -> dict[str, Any]:
    """Return everything that `show` prints, with complete lists."""
    counts = _class_counts(evidence)
    return {
        "dataset": evidence.settings.dataset,
        "data_root": str(evidence.settings.data_root),
        "trainable": not any(finding.severity == "error" for finding in found),
        "findings": [{"severity": f.severity, "title": f.title, "fix": f.fix, "where": list(f.where)} for f in found],
        "splits": [_split_row(evidence, dataset) for dataset in evidence.datasets],
        "classes": [
            {"id": index, "name": name} | {key: int(column[index]) for key, column in counts.items()}
            for index, name in enumerate(evidence.class_names)
        ],
        "images_checked": len(evidence.samples),
        "images_skipped": evidence.total - len(evidence.samples),
    }


def show(console: Console, evidence: Evidence, found: list[Finding]) -> None:
    """Print tables of splits and classes, the findings (errors first) and a verdict."""
    console.print(f"{evidence.settings.dataset} in {evidence.settings.data_root}", style="bold", highlight=False)
    if evidence.datasets:
        console.print(_splits_table(evidence))
    if evidence.samples and evidence.class_names:
        console.print(_classes_table(evidence))
    for severity in SEVERITIES:
        for finding in found:
            if finding.severity == severity:
                _show_finding(console, finding)
    skipped = evidence.total - len(evidence.samples)
    if skipped:
        console.print(f"{skipped} of {evidence.total} images were not checked (--max-files)", style="bold")
    number = Counter(finding.severity for finding in found)
    verdict = "not trainable" if number["error"] else "trainable" + (", as far as checked" if skipped else "")
    console.print(
        f"{verdict}: {counted(number['error'], 'error')}, {counted(number['warning'], 'warning')}",
        style="bold red" if number["error"] else "bold green",
        highlight=False,
    )


def _show_finding(console: Console, finding: Finding) -> None:
    style = COLORS[finding.severity]
    console.print(Text.assemble((f"{finding.severity:8}", style), finding.title), soft_wrap=True)
    for place in finding.where[:MOST_EXAMPLES]:
        console.print(Text(f"          {place}", style="dim"), soft_wrap=True)
    more = len(finding.where) - MOST_EXAMPLES
    if more > 0:
        console.print(Text(f"          and {more} more (all of them with --json)", style="dim"), soft_wrap=True)
    if finding.fix:
        console.print(Text.assemble("        ", ("fix: ", "bold"), finding.fix), soft_wrap=True)


def _split_row(evidence: Evidence, dataset: PairDataset) -> dict[str, Any]:
    samples = evidence.samples_of(dataset)
    row: dict[str, Any] = {"split": dataset.split, "images": len(dataset)}
    row["masks"] = sum(map(dataset.has_label, range(len(dataset))))
    if dataset is evidence.train:
        split = evidence.split
        row |= {"labeled": len(split.labeled), "unlabeled": len(split.unlabeled)}
    sizes = Counter(sample.image_size for sample in samples if sample.image_size is not None)
    common = [f"{width}x{height}" for (height, width), _ in sizes.most_common(2)]
    return row | {"checked": len(samples), "sizes": common, "different_sizes": len(sizes)}


def _splits_table(evidence: Evidence) -> Table:
    table = Table()
    table.add_column("split")
    for name in ("images", "masks", "labeled", "unlabeled", "checked"):
        table.add_column(name, justify="right")
    table.add_column("width x height")
    for dataset in evidence.datasets:
        row = _split_row(evidence, dataset)
        numbers = [str(row.get(name, "-")) for name in ("images", "masks", "labeled", "unlabeled", "checked")]
        more = row["different_sizes"] - len(row["sizes"])
        table.add_row(row["split"], *numbers, ", ".join(row["sizes"]) + (f", {more} more" if more > 0 else ""))
    return table


def _class_counts(evidence: Evidence) -> dict[str, np.ndarray]:
    pixels, labeled = evidence.histogram(evidence.labeled_samples())
    return {
        "labeled_pixels": pixels,
        "labeled_images": labeled,
        "train_images": evidence.histogram(evidence.samples_of(evidence.train))[1],
        "val_images": evidence.histogram(evidence.samples_of(evidence.val))[1],
    }


def _classes_table(evidence: Evidence) -> Table:
    counts = _class_counts(evidence)
    shown = np.arange(evidence.num_classes)
    title = None
    if len(shown) > MOST_ROWS:
        shown = np.sort(np.argsort(counts["labeled_images"], kind="stable")[:MOST_ROWS])
        title = f"the {MOST_ROWS} rarest of {evidence.num_classes} classes (all of them with --json)"
    table = Table(title=title)
    table.add_column("id", justify="right")
    table.add_column("class")
    for name in ("labeled pixels", "labeled images", "train images", "val images"):
        table.add_column(name, justify="right")
    total = max(1, counts["labeled_pixels"].sum())
    for index in shown:
        pixels, *images = (column[index] for column in counts.values())
        style = "yellow" if images[0] == 0 else None
        share = f"{pixels / total:.2%}"
        table.add_row(str(index), Text(evidence.class_names[index]), share, *map(str, images), style=style)
    return table
