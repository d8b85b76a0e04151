"""Compare a training with the fused ops and one with the reference.

``python -m benchmarks.draw.agreement RUN RUN RUN RUN`` takes four runs that logged every step. The first three start
from the same weights, data and draws: with the fused ops, with the reference, and with the fused ops and another memory
layout, so that only the rounding of the networks differs from the first. The fourth has another seed. Training doubles
any difference every few steps. The fused ops are the reference if the first two runs separate no faster than the first
and the third do. Writes ``agreement.png`` (losses over the first steps, and the distance from the first run) and
``agreement.json``.
"""

import argparse
import json
import statistics
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from ..accuracy.runs import log_lines
from .training_curves import series, smooth

COLORS = ("#2ca02c", "#7f7f7f", "#1f77b4", "#d62728")
LOSSES = ("supervised", "unsupervised", "contrastive")
NAMES = ("fused", "reference", "fused, other layout", "fused, other seed")


def gap(one: list[float], other: list[float]) -> list[float]:
    """Return the distance relative to the second, step by step; 0 if both are 0."""
    return [abs(a - b) / abs(b) if b else abs(a) for a, b in zip(one, other, strict=True)]


def compared(logs: list[list[dict]], steps: int) -> dict:
    """Return each loss of each run over the first ``steps`` steps."""
    found: dict = {"step": list(range(1, steps + 1)), "losses": {}}
    for name in LOSSES:
        curves = []
        for log in logs:
            at, values = series(log, name)
            if at[:steps] != found["step"]:
                raise SystemExit(f"a run did not log its first {steps} steps one by one; train with --log-every 1")
            curves.append(values[:steps])
        found["losses"][name] = dict(zip(NAMES, curves, strict=True))
    return found


def summary(found: dict) -> dict[str, dict[str, float]]:
    """Return the median distance of each run from the first, for each loss, over the steps at which it is not 0."""
    rows = {}
    for name, curves in found["losses"].items():
        first = curves[NAMES[0]]
        began = next(i for i, value in enumerate(first) if value)
        rows[name] = {other: statistics.median(gap(curves[other], first)[began:]) for other in NAMES[1:]}
    return rows


def draw(found: dict, out: Path) -> None:
    figure, axes = plt.subplots(2, len(LOSSES), figsize=(14, 6.5), constrained_layout=True, sharex=True)
    for (name, curves), (above, below) in zip(found["losses"].items(), axes.T, strict=True):
        for label, style, color in zip(NAMES, ("-", "--", "-.", ":"), COLORS, strict=True):
            above.plot(found["step"], smooth(curves[label]), style, color=color, label=label)
            if label != NAMES[0]:
                apart = zip(found["step"], gap(curves[label], curves[NAMES[0]]), strict=True)
                steps, distance = zip(
                    *[pair for pair in apart if pair[1]], strict=True
                )  # equal losses have no logarithm
                below.semilogy(steps, distance, ".", markersize=3, color=color, label=label)
        above.set_title(f"{name} loss")
        below.set_title(f"relative distance from {NAMES[0]}")
        below.set_xlabel("step")
        for axis in (above, below):
            axis.grid(alpha=0.3)
            axis.legend()
    figure.savefig(out, dpi=90)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs=4, metavar="RUN", help="folders, in the order above")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    found = compared([log_lines(run) for run in arguments.runs], arguments.steps)
    arguments.out.mkdir(parents=True, exist_ok=True)
    draw(found, arguments.out / "agreement.png")
    scores = [json.loads((run / "metrics.json").read_text()) for run in arguments.runs]
    found["summary"] = summary(found)
    found["runs"] = {
        name: {key: score[key] for key in ("steps", "miou", "network", "seconds")}
        for name, score in zip(NAMES, scores, strict=True)
    }
    (arguments.out / "agreement.json").write_text(json.dumps(found) + "\n")
    for name, row in found["summary"].items():
        print(f"{name:13} " + ", ".join(f"{other} {distance:.1e}" for other, distance in row.items()))
    for name, score in found["runs"].items():
        print(f"{name:18} mIoU {score['miou']:.4f} ({score['network']}) after {score['steps']} steps")


if __name__ == "__main__":
    main()
