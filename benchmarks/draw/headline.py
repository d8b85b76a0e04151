"""``python -m benchmarks.draw.headline``: draw the picture of README.md from the results of one device.

Bars are the time and the extra memory of the op and of what it is compared with, as in the ``headline`` table. The
file holds what it shows as text too, which a test compares with the results.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..measure import results
from ..measure.machine import ROOT
from .measurement_plots import COLORS
from .panels import pyplot
from .tables.ops import BRANCH, WORDS, baseline
from .tables.records import folder_data, grouped, number, ratio, records_of

# What is drawn: title, op and pass.
ROWS = (
    ("pixel_stats\npseudo-label, confidence, entropy", "pixel_stats", "forward"),
    ("upsampled_cross_entropy\nloss and gradient", "upsampled_cross_entropy", "forward+backward"),
    ("contrastive_loss\nloss, memory bank, and gradient", BRANCH, "forward+backward"),
)
BANK = (None, "literal")


def draw(folder: Path, path: Path) -> None:
    """Write the picture of the results in ``folder`` to ``path``."""
    shown = []
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 2.7), layout="constrained", sharey=True)
    settings = grouped(records_of(folder))
    for place, (_, op, passes) in enumerate(ROWS):
        wanted = ("voc", "float32", "contiguous", op, passes)
        (setting,) = [s for s in settings if "fused" in s and _of(s["fused"]) == wanted and s["fused"]["bank"] in BANK]
        other, fused = baseline(setting), setting["fused"]
        theirs = setting[other]
        for axis, value, unit, gain in (
            (axes[0], "ms_median", "ms", f"{number(ratio(setting, other))}× faster"),
            (axes[1], "peak_mb", "MiB", f"{number(theirs['peak_mb'] / fused['peak_mb'])}× less"),
        ):
            for row, record, color in ((place - 0.2, theirs, COLORS["eager"]), (place + 0.2, fused, COLORS["fused"])):
                axis.barh(row, record[value], 0.36, color=color)
                text = f" {number(record[value])} {unit}   " + (gain if record is fused else WORDS[other])
                axis.text(record[value], row, text, va="center", fontsize=9)
                shown.append(f"{op}: {text.strip()}")
    axes[0].set_yticks(range(len(ROWS)), [title for title, *_ in ROWS], fontsize=9)
    axes[0].invert_yaxis()
    for axis, title in zip(axes, ("time per call", "extra memory per call"), strict=True):
        axis.set_title(title, fontsize=10)
        axis.set_xticks([])
        axis.tick_params(left=False)
        axis.margins(x=0.2)
        axis.spines[["top", "right", "bottom"]].set_visible(False)
    figure.legend(
        [pyplot.Rectangle((0, 0), 1, 1, color=COLORS[impl]) for impl in ("eager", "fused")],
        ["without u2pl_fast", "with u2pl_fast"],
        loc="outside lower center",
        ncols=2,
        frameon=False,
        fontsize=9,
    )
    (machine,) = {data["machine"]["name"] for data in folder_data(folder)}
    figure.text(0.995, 0.02, f"{machine}, float32", ha="right", fontsize=8, color="#666666")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=180, facecolor="white", metadata={"Comment": "\n".join(shown)})
    pyplot.close(figure)


def _of(record: results.Record) -> tuple:
    return tuple(record[name] for name in ("workload", "dtype", "layout", "op", "pass"))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.draw.headline", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", help="a folder of benchmarks/results")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "plots", metavar="DIR")
    args = parser.parse_args(argv)
    draw(results.RESULTS / args.device, args.out / "headline.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
