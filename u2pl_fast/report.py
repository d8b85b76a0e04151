"""``python -m u2pl_fast.report DIR``: one self-contained HTML page of a training run.

Curves, IoU of each class, pseudo-labels against hidden masks, what the memory bank holds, the confusion matrix, and the
pictures of the last evaluation: everything from the files that the run left in its folder.
"""

import html
import io
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
import yaml

from . import html_page

STYLE = """
svg { max-width: 100%; height: auto } .bar { background: #4c78a8; height: .8rem } details { margin: 1rem 0 }
figure { display: inline-block; margin: 0 1rem 1rem 0 } figure img { width: 16rem; image-rendering: pixelated }
"""


@dataclass
class ReportConfig:
    """Write one self-contained HTML page of a training run."""

    run: tyro.conf.Positional[Path]
    """Folder that the training wrote."""
    out: Path | None = None
    """File to write; unset: report.html in that folder."""


@dataclass
class Run:
    """What a run's folder holds."""

    folder: Path
    config: dict[str, Any]
    log: list[dict[str, Any]]
    metrics: dict[str, Any]
    class_names: list[str]

    def series(self, name: str) -> tuple[list[int], list[Any]]:
        """Steps and values of what was logged under ``name``."""
        rows = [(line["step"], line[name]) for line in self.log if line.get(name) is not None]
        return [step for step, _ in rows], [value for _, value in rows]


def read(folder: Path) -> Run:
    """The files of a run, finished or not.

    Raises:
        ValueError: there is none; the message names the file that is missing or broken.
    """
    lines = _text(folder / "log.jsonl").splitlines()
    log = []
    for number, line in enumerate(lines):
        try:
            log.append(json.loads(line))
        except ValueError as error:
            if number + 1 < len(lines):  # a run that was killed leaves its last line unfinished
                raise ValueError(f"{folder / 'log.jsonl'}, line {number + 1}: not JSON ({error})") from error
    metrics = folder / "metrics.json"
    names = folder / "classes.json"
    return Run(
        folder,
        yaml.safe_load(_text(folder / "config.yaml")),
        log,
        json.loads(_text(metrics)) if metrics.exists() else {},
        json.loads(_text(names)) if names.exists() else [],
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}; is this the --out folder of a training?") from error


def page(run: Run) -> str:
    """The whole page."""
    sections = [
        ("Losses", losses(run)),
        ("Validation", validation(run)),
        ("Intersection over union of each class", classes(run)),
        ("Pseudo-labels", pseudo_labels(run)),
        ("Memory bank", bank(run)),
        ("Confusion", confusion(run)),
        ("Last evaluation's batch", pictures(run)),
        ("Settings", settings(run)),
    ]
    body = "".join(f"<h2>{title}</h2>\n{content}\n" for title, content in sections if content)
    return html_page.document(run.folder.resolve().name, summary(run) + body, STYLE)


def summary(run: Run) -> str:
    config, metrics = run.config, run.metrics
    method = f"u2pl ({config['recipe']})" if config["method"] == "u2pl" else config["method"]
    last = max((line["step"] for line in run.log), default=0)
    rows = [("method", method), ("data", config["dataset"]), ("network", f"{config['arch']}/{config['encoder']}")]
    rows.append(("steps", f"{last} of {config['steps'] or '?'}"))
    if metrics.get("miou") is not None:
        rows.append(("mIoU", f"{metrics['miou']:.4f} ({metrics['network']}), best {metrics['best_miou']:.4f}"))
    if metrics.get("seconds"):
        share = metrics["loader_seconds"] / metrics["seconds"]
        rows.append(("time", f"{metrics['seconds'] / 60:.1f} min of training, {share:.1%} of it waiting for images"))
        rows.append(("updates skipped", str(metrics["skipped"])))
    return html_page.table(rows)


def losses(run: Run) -> str:
    names = ("supervised", "unsupervised", "contrastive")

    def draw(axes: Sequence[Any]) -> None:
        for axis, name in zip(axes, names, strict=True):
            steps, values = run.series(name)
            began = next((i for i, value in enumerate(values) if value), 0)  # after the phase on labels alone
            steps, values = steps[began:], values[began:]
            axis.plot(steps, values, color="#b8c9dd", linewidth=0.8)
            axis.plot(steps, _smooth(values), color="#4c78a8")
            axis.set_title(name)
            axis.set_ylim(bottom=0)

    return _figure(draw, 3)


def validation(run: Run) -> str:
    def draw(axes: Sequence[Any]) -> None:
        for name, colour in (("student", "#f58518"), ("teacher", "#4c78a8")):
            steps, values = run.series(f"miou_{name}")
            if steps:
                axes[0].plot(steps, values, "o-", markersize=3, color=colour, label=name)
        axes[0].set_title("mIoU")
        axes[0].legend()
        axes[1].plot(*run.series("lr"), color="#4c78a8")
        axes[1].set_title("learning rate")

    return _figure(draw, 2) if run.series("miou_student")[0] else ""


def classes(run: Run) -> str:
    ious = run.metrics.get("iou_per_class") or (run.series("iou_per_class")[1] or [None])[-1]
    if not ious:
        return ""
    names = run.class_names or [f"class {i}" for i in range(len(ious))]
    rows = []
    for name, iou in zip(names, ious, strict=False):
        width = 0 if iou is None else 24 * iou
        score = "not in the data" if iou is None else f"{iou:.3f}"
        rows.append(f"<tr><td>{html.escape(name)}</td><td>{score}</td>")
        rows.append(f'<td><div class="bar" style="width:{width:.2f}rem"></div></td></tr>')
    return f"<table>{''.join(rows)}</table>"


def pseudo_labels(run: Run) -> str:
    kinds = {"": "all pixels", "_reliable": "reliable", "_unreliable": "unreliable"}

    def draw(axes: Sequence[Any]) -> None:
        for (kind, label), colour in zip(kinds.items(), ("#4c78a8", "#54a24b", "#e45756"), strict=True):
            steps, values = run.series(f"pseudo_accuracy{kind}")
            axes[0].plot(steps, values, "o-", markersize=3, color=colour, label=label)
        axes[0].set_title("accuracy against hidden masks")
        axes[0].legend()
        axes[1].plot(*run.series("reliable_share"), color="#54a24b")
        axes[1].set_title("share of pixels that count as reliable")
        for axis in axes[:2]:
            axis.set_ylim(0, 1)
        axes[2].plot(*run.series("gamma"), color="#4c78a8")
        axes[2].set_title("entropy threshold γ, nats")

    if not run.series("gamma")[0]:
        return ""
    note = "" if run.series("pseudo_accuracy")[0] else "<p>No unlabelled image has a mask to compare with.</p>"
    return note + _figure(draw, 3)


def bank(run: Run) -> str:
    if not run.series("bank_fill")[0]:
        return ""

    def draw(axes: Sequence[Any]) -> None:
        for axis, name, title in zip(
            axes,
            ("bank_fill", "bank_turnover", "anchors"),
            ("keys held, each class", "share new in a step, mean", "anchor pixels of a step, least and mean"),
            strict=True,
        ):
            steps, rows = run.series(name)
            values = np.asarray(rows, dtype=float)
            if name == "bank_fill":
                axis.plot(steps, values, linewidth=0.8)
            else:
                axis.plot(steps, values.mean(1), color="#4c78a8")
            if name == "anchors":
                axis.plot(steps, values.min(1), color="#e45756")
            axis.set_title(title)
            axis.set_ylim(bottom=0)

    return _figure(draw, 3)


def confusion(run: Run) -> str:
    counts = run.metrics.get("confusion")
    if not counts:
        return ""
    matrix = np.asarray(counts, dtype=float)
    share = matrix / matrix.sum(1, keepdims=True).clip(min=1)
    names = run.class_names or [str(i) for i in range(len(matrix))]

    def draw(axes: Sequence[Any]) -> None:
        axis = axes[0]
        picture = axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
        if len(names) <= 30:
            axis.set_xticks(range(len(names)), names, rotation=90)
            axis.set_yticks(range(len(names)), names)
        axis.set_xlabel("predicted")
        axis.set_ylabel("truth")
        axis.grid(visible=False)
        axis.figure.colorbar(picture, label="share of the class's pixels")

    return _figure(draw, 1, size=(7.5, 6.5))


def pictures(run: Run) -> str:
    found = sorted((run.folder / "pictures").glob("*.png"))
    captions = (path.stem.replace("-", ": ").replace("_", " ") for path in found)
    return "".join(
        html_page.figure(path.read_bytes(), "png", caption) for path, caption in zip(found, captions, strict=True)
    )


def settings(run: Run) -> str:
    text = html.escape(yaml.safe_dump(run.config, sort_keys=False))
    return f"<details><summary>config.yaml</summary><pre>{text}</pre></details>"


def _smooth(values: Sequence[float], weight: float = 0.9) -> list[float]:
    out: list[float] = []
    for value in values:
        out.append(value if not out else weight * out[-1] + (1 - weight) * value)
    return out


def _figure(draw: Callable[[Sequence[Any]], None], panels: int, size: tuple[float, float] | None = None) -> str:
    """What ``draw`` makes of some axes, as inline SVG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size or (4 * panels, 2.8), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    draw(axes)
    if size is None:
        for axis in axes:
            axis.set_xlabel("step")
    text = io.StringIO()
    figure.savefig(text, format="svg")
    return text.getvalue()[text.getvalue().index("<svg") :]


def main(arguments: list[str] | None = None) -> None:
    config = tyro.cli(ReportConfig, args=arguments, prog="python -m u2pl_fast.report", description=__doc__)
    out = config.out or config.run / "report.html"
    try:
        text = page(read(config.run))
        out.write_text(text, encoding="utf-8")
    except ValueError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: cannot write {out}: {error.strerror or error}")
    print(f"{out}: {len(text) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
