"""``python -m benchmarks.agreement FUSED REFERENCE OTHER --out DIR``: do the fused ops train the same network?

Three runs that logged every step: two from the same weights, data and draws, with the fused ops and with the reference,
and one of another seed, whose distance from the first is what chance alone does. Writes ``agreement.png`` (losses over
the first steps, and how far apart they are) and ``agreement.json``.
"""

import argparse
import json
import statistics
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from .curves import lines, series, smooth

LOSSES = ("supervised", "unsupervised", "contrastive")
NAMES = ("fused", "reference", "fused, other seed")


def gap(one: list[float], other: list[float]) -> list[float]:
    """Distance relative to the second, step by step; 0 where both are 0."""
    return [abs(a - b) / abs(b) if b else abs(a) for a, b in zip(one, other, strict=True)]


def compared(logs: list[list[dict]], steps: int) -> dict:
    """Each loss of each run over the first ``steps`` steps."""
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
    """Of each loss: the gap of the first step at which it is not 0, and the median gaps over all such steps."""
    rows = {}
    for name, curves in found["losses"].items():
        fused, reference, other = (curves[n] for n in NAMES)
        began = next(i for i, value in enumerate(reference) if value)
        same, chance = gap(fused, reference)[began:], gap(other, reference)[began:]
        rows[name] = {"first": same[0], "median": statistics.median(same), "other_seed": statistics.median(chance)}
    return rows


def draw(found: dict, out: Path) -> None:
    figure, axes = plt.subplots(2, len(LOSSES), figsize=(14, 6.5), constrained_layout=True, sharex=True)
    for (name, curves), (above, below) in zip(found["losses"].items(), axes.T, strict=True):
        for label, style in zip(NAMES, ("-", "--", ":"), strict=True):
            above.plot(found["step"], smooth(curves[label]), style, label=label)
        for label in NAMES[::2]:
            distance = [max(x, 1e-8) for x in gap(curves[label], curves["reference"])]
            below.semilogy(found["step"], distance, ".", markersize=3, label=f"{label} − reference")
        above.set_title(f"{name} loss")
        below.set_title("relative distance from the reference")
        below.set_xlabel("step")
        for axis in (above, below):
            axis.grid(alpha=0.3)
            axis.legend()
    figure.savefig(out, dpi=90)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs=3, metavar="RUN", help="folders: fused, reference, another seed")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    found = compared([lines(run) for run in arguments.runs], arguments.steps)
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
        print(
            f"{name:13} first {row['first']:.1e}, median {row['median']:.1e} apart; "
            f"another seed {row['other_seed']:.1e}"
        )
    for name, score in found["runs"].items():
        print(f"{name:18} mIoU {score['miou']:.4f} ({score['network']}) after {score['steps']} steps")


if __name__ == "__main__":
    main()
