"""Draw and tabulate what training runs logged: ``python -m benchmarks.draw.training_curves RUN … --out DIR``.

Reads ``log.jsonl`` and ``metrics.json`` of each run's folder. Writes ``curves.png`` and ``runs.json``: for each run its
settings, its scores, and how many anchors each class got over the logged steps.
"""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import yaml

from ..accuracy.runs import log_lines

SETTINGS = ("method", "recipe", "dataset", "num_labeled", "resize", "crop_size", "batch_size", "steps", "lr", "seed")


def series(log: list[dict], name: str) -> tuple[list[int], list[float]]:
    picked = [(line["step"], line[name]) for line in log if name in line]
    return [step for step, _ in picked], [value for _, value in picked]


def smooth(values: list[float], weight: float = 0.8) -> list[float]:
    out: list[float] = []
    for value in values:
        out.append(value if not out else weight * out[-1] + (1 - weight) * value)
    return out


def draw(logs: dict[str, list[dict]], out: Path) -> None:
    figure, axes = plt.subplots(2, 3, figsize=(14, 7), constrained_layout=True)
    panels = ("supervised", "unsupervised", "contrastive", "reliable_share")
    for (name, log), color in zip(logs.items(), plt.rcParams["axes.prop_cycle"].by_key()["color"], strict=False):
        for axis, panel in zip(axes.flat, panels, strict=False):
            steps, values = series(log, panel)
            began = next((i for i, value in enumerate(values) if value), len(values))  # not in the labels-only phase
            if began < len(values):
                axis.plot(steps[began:], smooth(values[began:]), color=color, label=name)
        steps, scores = series(log, "miou_teacher")
        if not steps:
            steps, scores = series(log, "miou_student")
        axes[1, 1].plot(steps, scores, "o-", color=color, label=name)
        steps, turnover = series(log, "bank_turnover")
        if steps:
            axes[1, 2].plot(steps, [sum(t) / len(t) for t in turnover], color=color, label=name)
    titles = ("supervised loss", "unsupervised loss", "contrastive loss", "share of reliable pixels")
    for axis, title in zip(
        axes.flat, (*titles, "val mIoU of the evaluated network", "bank: share new a step"), strict=True
    ):
        axis.set_title(title)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend()
    axes[1, 2].set_ylim(bottom=0)
    figure.savefig(out, dpi=90)
    plt.close(figure)


def summary(run: Path, log: list[dict]) -> dict:
    config = yaml.safe_load((run / "config.yaml").read_text())
    anchors = [line["anchors"] for line in log if "anchors" in line]
    return {
        "run": run.name,
        **{name: config[name] for name in SETTINGS},
        **json.loads((run / "metrics.json").read_text()),
        "anchors_per_class": [sum(column) for column in zip(*anchors, strict=True)] or None,
        "bank_fill": next((line["bank_fill"] for line in reversed(log) if "bank_fill" in line), None),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders that a training wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder for curves.png and runs.json")
    arguments = parser.parse_args()
    missing = [run for run in arguments.runs if not (run / "metrics.json").exists()]
    if missing:
        parser.error(f"{missing[0]} holds no finished run: no metrics.json in it")
    arguments.out.mkdir(parents=True, exist_ok=True)
    logs = {run.name: log_lines(run) for run in arguments.runs}
    draw(logs, arguments.out / "curves.png")
    rows = [summary(run, logs[run.name]) for run in arguments.runs]
    (arguments.out / "runs.json").write_text(json.dumps(rows, indent=1) + "\n")
    for row in rows:
        print(f"{row['run']:14} last {row['miou']:.4f}  best {row['best_miou']:.4f}  {row['network']}")


if __name__ == "__main__":
    main()
