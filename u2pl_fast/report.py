"""Write one self-contained HTML page of a run.

It shows curves, the IoU of each class, pseudo-labels compared with hidden masks, the memory bank, the confusion matrix
and images of the last evaluation, all from the files in the run's folder.
"""

import html
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
import yaml

from .pictures import charts, html_page
from .pictures.palette import palette
from .training.record import Run
from .utils.atomic import write_text
from .utils.class_names import numbered_classes
from .utils.command_line import parse
from .utils.fields import setting

STYLE = """
h1 { font-size: 1.6rem; margin-bottom: 0 }
p.what { color: #555; margin: .2rem 0 1rem } p.note, li { max-width: 50rem }
.tiles { display: flex; flex-wrap: wrap; gap: .6rem; margin: 1rem 0 }
.tiles div { background: #f3f6fa; border-radius: .4rem; padding: .5rem .8rem; min-width: 6rem }
.tiles b { display: block; font-size: 1.5rem } .tiles span { color: #555; font-size: .85rem }
svg { width: 100%; height: auto; max-width: 66rem } svg text { font-family: system-ui, sans-serif }
.square svg { max-width: 46rem }
table { font-size: .95rem } td, th { padding-right: 1rem; white-space: nowrap } th { font-weight: 600 }
td.n, th.n { text-align: right } .bar { background: #e3e9f0; width: 12rem } .bar i { display: block; height: .8rem;
       background: #4c78a8 } .dot { display: inline-block; width: .8rem; height: .8rem; border-radius: .2rem;
       margin-right: .5rem; vertical-align: -.05rem } .wide { overflow-x: auto }
figure { display: inline-block; margin: 0 1rem 1rem 0; vertical-align: top } figure img { width: 15rem;
       image-rendering: pixelated } figcaption { max-width: 15rem }
details { margin: 1rem 0 }
"""
# Images that a run saves, in the order of the page.
PICTURES = {
    "labeled-image": "labeled image, weak view",
    "labeled-label": "its mask; black = ignored",
    "unlabeled-mixed": "unlabeled image, strong view, mixed",
    "unlabeled-pseudo_label": "pseudo-labels of the teacher, mixed the same way",
    "unlabeled-entropy": "entropy; light = uncertain",
    "unlabeled-reliable": "reliable pixels (white), which are trained on",
}


@dataclass(kw_only=True)
class ReportConfig:
    """Settings of ``u2pl report``."""

    run: tyro.conf.Positional[Path]
    """Output folder of a training."""
    out: Path | None = setting(None, metavar="FILE")
    """File to write. Unset: report.html in that folder."""


def page(run: Run) -> str:
    """Return the whole page."""
    sections = [
        ("Warnings", notes(run)),
        ("Losses", losses(run)),
        ("Validation", validation(run)),
        ("Classes", classes(run)),
        ("Pseudo-labels", pseudo_labels(run)),
        ("Memory bank", bank(run)),
        ("Confusion", confusion(run)),
        ("Images at the last evaluation", pictures(run)),
        ("Settings", settings(run)),
    ]
    body = "".join(f"<h2>{title}</h2>\n{content}\n" for title, content in sections if content)
    return html_page.document(run.folder.resolve().name, summary(run) + body, STYLE)


def summary(run: Run) -> str:
    """Name what was trained, and show the main numbers."""
    config, metrics = run.config, run.metrics
    method = f"u2pl ({config['recipe']})" if config["method"] == "u2pl" else config["method"]
    what = f"{method} on {config['dataset']}, {config['arch']}/{config['encoder']}"
    last = max((line["step"] for line in run.log), default=0)
    tiles = [(f"{last:,} of {config['steps'] or '?'}", "steps")]
    scores = [(name, run.series(f"miou_{name}")[1]) for name in ("teacher", "student")]
    network, values = next(((name, values) for name, values in scores if values), ("", []))
    if metrics.get("miou") is not None:
        tiles += [
            (f"{metrics['miou']:.4f}", f"mIoU ({metrics['network']})"),
            (f"{metrics['best_miou']:.4f}", "best mIoU"),
        ]
    elif values:
        tiles += [(f"{values[-1]:.4f}", f"mIoU so far ({network})")]
    quality = run.series("pseudo_accuracy")[1]
    if quality:
        tiles.append((f"{quality[-1]:.1%}", "of pseudo-labels correct"))
    if metrics.get("seconds"):
        tiles.append((f"{metrics['seconds'] / 60:.1f} min", "of training"))
        tiles.append((f"{metrics['loader_seconds'] / metrics['seconds']:.1%}", "of it spent waiting for images"))
        tiles.append((str(metrics["skipped"]), "updates skipped"))
    cells = "".join(f"<div><b>{html.escape(value)}</b><span>{html.escape(name)}</span></div>" for value, name in tiles)
    return f'<p class="what">{html.escape(what)}</p><div class="tiles">{cells}</div>'


def notes(run: Run) -> str:
    """List what looks wrong in the log; empty if nothing does."""
    found = []
    skipped = (run.series("skipped")[1] or [0])[-1]
    if skipped:
        found.append(f"{skipped} updates were skipped because a loss or gradient was not finite.")
    waited, seconds = sum(run.series("loader_wait_seconds")[1]), run.metrics.get("seconds")
    if seconds and waited > 0.2 * seconds:
        found.append(
            f"{waited / seconds:.0%} of the time was spent waiting for images: use more --workers, or smaller files."
        )
    anchors = run.series("anchors")[1]
    recent = np.asarray(anchors[-max(1, len(anchors) // 4) :])
    if anchors and not recent.sum():
        found.append("No class has an anchor, so the contrastive loss is 0.")
    elif anchors:
        without = [name for name, count in zip(_names(run, recent.shape[1]), recent.sum(0), strict=True) if not count]
        if without:
            found.append(f"No anchor in the last quarter of the log: {_listed(without)}.")
    sure, unsure = (run.series(f"pseudo_accuracy_{kind}")[1] for kind in ("reliable", "unreliable"))
    if sure and unsure and sure[-1] <= unsure[-1]:
        found.append("Reliable pseudo-labels are no more accurate than unreliable ones.")
    turnover = run.series("bank_turnover")[1]
    if len(turnover) > 4 and min(turnover[-1]) > 0.9:
        found.append(
            "The bank holds little more than the keys of one step: lower --max-keys-per-step, or raise --bank-capacity."
        )
    return "".join(["<ul>", *(f"<li>{html.escape(text)}</li>" for text in found), "</ul>"]) if found else ""


def losses(run: Run) -> str:
    names = {"supervised": "L_s, supervised", "unsupervised": "L_u, unsupervised", "contrastive": "L_c, contrastive"}
    shown = [name for name in names if any(run.series(name)[1])]

    def draw(axes: Sequence[Any]) -> None:
        for axis, name in zip(axes, shown, strict=True):
            steps, values = run.series(name)
            began = next(i for i, value in enumerate(values) if value)  # after the phase on labels alone
            charts.noisy(axis, steps[began:], values[began:])
            axis.set_title(names[name])
            axis.set_xlim(0, max(run.series("loss")[0]))
            if name == "contrastive" and run.config.get("negatives") != "full":
                chance = math.log(1 + run.config["num_negatives"])
                axis.axhline(chance, color=charts.RED, linewidth=0.8, linestyle="--")
                axis.set_ylim(top=1.05 * max(chance, *values))
                axis.set_title("L_c, contrastive; dashed: chance")

    return charts.figure(draw, len(shown)) if shown else ""


def validation(run: Run) -> str:
    if not run.series("miou_student")[0]:
        return ""
    by_class = run.series("iou_per_class")

    def draw(axes: Sequence[Any]) -> None:
        for name, color in (("student", charts.ORANGE), ("teacher", charts.BLUE)):
            if run.series(f"miou_{name}")[0]:
                charts.curve(axes[0], run.series(f"miou_{name}"), color, name)
        axes[0].set_title("mIoU")
        axes[0].legend()
        rows = [[math.nan if value is None else value for value in row] for row in by_class[1]]
        charts.per_class(axes[1], (by_class[0], rows), palette(len(rows[0])))
        axes[1].set_title("IoU by class; colors below")
        axes[1].set_ylim(0, 1)
        charts.curve(axes[2], run.series("lr"), charts.BLUE)
        axes[2].set_title("learning rate")
        for axis in axes:
            axis.set_ylim(bottom=0)

    return charts.figure(draw, 3)


def classes(run: Run) -> str:
    """Return a table with a row per class: IoU, share of pixels, most frequent confusion, anchors, keys."""
    ious = run.metrics.get("iou_per_class") or (run.series("iou_per_class")[1] or [None])[-1]
    if not ious:
        return ""
    names = _names(run, len(ious))
    colors = ["#{:02x}{:02x}{:02x}".format(*color) for color in palette(len(ious)).tolist()]
    counts = np.asarray(run.metrics.get("confusion") or np.zeros((0, 0)), dtype=float)
    anchors, fill = (run.series(name)[1] for name in ("anchors", "bank_fill"))
    heads = ["class", "IoU", "", *["share of pixels", "most confused with"] * bool(len(counts))]
    heads += ["anchors per step", "keys held"] * bool(anchors)
    rows = []
    for c, (name, iou) in enumerate(zip(names, ious, strict=True)):
        score = "not in the data" if iou is None else f"{iou:.3f}"
        bar = f'<div class="bar"><i style="width:{100 * (iou or 0):.1f}%"></i></div>'
        cells = [f'<td><i class="dot" style="background:{colors[c]}"></i>{html.escape(name)}</td>']
        cells += [f'<td class="n">{score}</td>', f"<td>{bar}</td>"]
        if len(counts):
            cells += [
                f'<td class="n">{counts[c].sum() / counts.sum():.2%}</td>',
                f"<td>{_taken_for(counts[c], c, names)}</td>",
            ]
        if anchors:
            cells += [f'<td class="n">{np.mean([row[c] for row in anchors]):,.0f}</td>']
            cells += [f'<td class="n">{fill[-1][c]:,}</td>']
        rows.append(f"<tr>{''.join(cells)}</tr>")
    numeric = {"IoU", "share of pixels", "anchors per step", "keys held"}
    head = "".join(f'<th class="n">{name}</th>' if name in numeric else f"<th>{name}</th>" for name in heads)
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(rows)}</table></div>'


def _taken_for(row: np.ndarray, c: int, names: Sequence[str]) -> str:
    """Name the class that most wrong pixels of class ``c`` are labeled as, with their share."""
    wrong = row.copy()
    wrong[c] = 0
    if not wrong.any():
        return ""
    other = int(wrong.argmax())
    return f"{html.escape(names[other])}, {wrong[other] / row.sum():.0%}"


def pseudo_labels(run: Run) -> str:
    if not run.series("gamma")[0]:
        return ""
    kinds = {
        "_reliable": ("reliable", charts.GREEN),
        "": ("all", charts.BLUE),
        "_unreliable": ("unreliable", charts.RED),
    }
    measured = bool(run.series("pseudo_accuracy")[0])

    def draw(axes: Sequence[Any]) -> None:
        *quality, share, gamma = axes
        for axis in quality:
            for kind, (label, color) in kinds.items():
                charts.curve(axis, run.series(f"pseudo_accuracy{kind}"), color, label)
            charts.curve(axis, run.series("pseudo_miou"), charts.ORANGE, "mIoU of all")
            charts.curve(axis, run.series("pseudo_negatives_right"), charts.PURPLE, "negatives")
            axis.set_title("correct, compared with hidden masks")
            axis.set_ylim(0, 1)
            axis.legend(loc="lower right")
        charts.curve(share, run.series("reliable_share"), charts.GREEN)
        share.set_title("share of reliable pixels")
        share.set_ylim(0, 1.02)
        charts.noisy(gamma, *run.series("gamma"))
        gamma.set_title("entropy threshold γ, nats")

    note = "" if measured else '<p class="note">No unlabeled image has a mask to compare with.</p>'
    return note + charts.figure(draw, 2 + measured)


def bank(run: Run) -> str:
    if not run.series("bank_fill")[0]:
        return ""
    colors = palette(len(run.series("bank_fill")[1][0]))

    def draw(axes: Sequence[Any]) -> None:
        charts.per_class(axes[0], run.series("bank_fill"), colors)
        axes[0].set_title("keys in the bank, by class")
        charts.per_class(axes[1], run.series("bank_turnover"), colors)
        axes[1].set_title("share of new keys per step")
        charts.per_class(axes[2], run.series("anchors"), colors)
        axes[2].set_title("anchor pixels per step, by class")
        axes[2].set_yscale("symlog", linthresh=1)
        for axis in axes:
            axis.set_ylim(bottom=0)

    return charts.figure(draw, 3)


def confusion(run: Run) -> str:
    counts = run.metrics.get("confusion")
    if not counts:
        return ""
    share = np.asarray(counts, dtype=float)
    share /= share.sum(1, keepdims=True).clip(min=1)
    side = 3.2 + 0.27 * min(len(share), charts.MOST_NAMED)
    drawing = charts.figure(lambda axes: charts.matrix(axes[0], share, _names(run, len(share))), 1, (side + 1, side))
    note = '<p class="note">Rows: true class. Columns: predicted class. In % of the row.</p>'
    return f'{note}<div class="square">{drawing}</div>'


def pictures(run: Run) -> str:
    found = sorted((run.folder / "pictures").glob("*.png"), key=lambda path: _place(path.stem))
    figures, before = [], ""
    for path in found:
        kind = path.stem.partition("-")[0]  # labeled images in one row, unlabeled ones in the next
        figures += ["<br>"] * bool(before and kind != before)
        before = kind
        figures.append(html_page.figure(path.read_bytes(), "png", PICTURES.get(path.stem, path.stem)))
    return "".join(figures)


def _place(stem: str) -> tuple[int, str]:
    known = list(PICTURES)
    return (known.index(stem) if stem in known else len(known), stem)


def settings(run: Run) -> str:
    text = html.escape(yaml.safe_dump(run.config, sort_keys=False))
    return f"<details><summary>config.yaml</summary><pre>{text}</pre></details>"


def _names(run: Run, count: int) -> list[str]:
    return run.class_names if len(run.class_names) == count else numbered_classes(count)


def _listed(names: Sequence[str], most: int = 12) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def main(arguments: list[str] | None = None) -> None:
    """Parse flags and write the page; print bad input as one line."""
    config = parse(ReportConfig, arguments, command="report", description=__doc__)
    out = config.out or config.run / "report.html"
    try:
        text = page(Run.read(config.run))
        write_text(out, text)
    except ValueError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: cannot write {out}: {error.strerror or error}")
    print(f"{out}: {len(text) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
