"""Plot the results of ``python -m benchmarks`` from the JSON."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot  # noqa: E402  (the backend must be chosen first: no display is needed)
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.ticker import NullFormatter, NullLocator  # noqa: E402

from ..measure import results  # noqa: E402

COLORS = {
    "plain": "#bcbd22",
    "eager": "#7f7f7f",
    "class-loop": "#d62728",
    "compile": "#1f77b4",
    "fused": "#2ca02c",
    "predicted": "#9467bd",
}
DRAWN = {"dtype": "float32", "layout": "contiguous"}


def bars(data: dict[str, Any], folder: Path) -> None:
    """Write ``<device>-time.png`` and ``<device>-memory.png``: a panel per op, a group per workload, a bar each."""
    records = [r for r in data["records"] if all(r[field] == choice for field, choice in DRAWN.items())]
    device = data["machine"]["device"]
    for name, value, label in (("time", "ms_median", "ms"), ("memory", "peak_mb", "MiB over the inputs")):
        drawn = [r for r in records if r[value] is not None]
        if drawn:
            _bars(drawn, value, label, data["machine"]["name"], folder / f"{device}-{name}.png")


def _bars(records: list[results.Record], value: str, label: str, machine: str, path: Path) -> None:
    panels: dict[str, list[results.Record]] = {}
    for record in records:
        title = " ".join(part for part in (record["op"], record["bank"], record["pass"]) if part)
        panels.setdefault(title, []).append(record)
    figure, every = _panels(len(panels))
    for axes, (title, group) in zip(every, panels.items(), strict=False):
        workloads = list(dict.fromkeys(r["workload"] for r in group))
        impls = [impl for impl in COLORS if any(r["impl"] == impl for r in group)]
        width = 0.8 / len(impls)
        for i, impl in enumerate(impls):
            found = {r["workload"]: r[value] for r in group if r["impl"] == impl}
            places = [workloads.index(name) + (i - (len(impls) - 1) / 2) * width for name in found]
            drawn = axes.bar(places, list(found.values()), width, label=impl, color=COLORS[impl])
            axes.bar_label(drawn, labels=[f"{v:.0f}" if v >= 100 else f"{v:.3g}" for v in found.values()], fontsize=6)
        axes.set(title=title, ylabel=label, yscale="log", xticks=range(len(workloads)), xticklabels=workloads)
        axes.margins(y=0.15)
        axes.legend(fontsize=7)
    _save(figure, f"{machine}; {', '.join(DRAWN.values())}", path)


def growth(data: dict[str, Any], folder: Path) -> None:
    """Write ``<device>-growth.png``: a log-log panel for each axis and op, with the fitted exponents."""
    panels: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for curve in data["curves"]:
        panels.setdefault((curve["axis"], curve["op"]), []).append(curve)
    figure, every = _panels(len(panels))
    for axes, ((axis, op), group) in zip(every, panels.items(), strict=False):
        for curve in group:
            label = f"{curve['impl']}, exponent {curve['exponent']:.2f}"
            axes.plot(curve["x"], curve["y"], "o-", color=COLORS[curve["impl"]], label=label)
        axes.set(title=op, xlabel=axis, ylabel=group[0]["unit"], xscale="log", yscale="log")
        axes.set_xticks(group[0]["x"], [f"{x:.3g}" if x < 1000 else f"{x / 1000:g}k" for x in group[0]["x"]])
        low, high = min(min(c["y"]) for c in group), max(max(c["y"]) for c in group)
        middle, span = (low * high) ** 0.5, max(1.3 * (high / low) ** 0.5, 10**0.5)
        axes.set_ylim(middle / span, middle * span)  # at least a decade, otherwise noise looks like growth
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize=7)
    _save(figure, data["machine"]["name"], folder / f"{data['machine']['device']}-growth.png")


def _panels(count: int) -> tuple[pyplot.Figure, list[Axes]]:
    columns = min(3, count)
    rows = -(-count // columns)
    figure, grid = pyplot.subplots(rows, columns, figsize=(5 * columns, 3.6 * rows), squeeze=False)
    every = list(grid.flat)
    for unused in every[count:]:
        unused.set_axis_off()
    return figure, every


def _save(figure: pyplot.Figure, title: str, path: Path) -> None:
    figure.suptitle(title, fontsize=10)
    figure.tight_layout(rect=(0, 0, 1, 0.98))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
