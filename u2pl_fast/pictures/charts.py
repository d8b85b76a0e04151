"""Draw curves and matrices of a run as inline SVG."""

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

BLUE, ORANGE, GREEN, RED, PURPLE, PALE = "#4c78a8", "#f58518", "#54a24b", "#e45756", "#9467bd", "#b8c9dd"
PANEL = (4.0, 2.7)  # inches
MOST_POINTS = 240  # of a curve; more would not be visible
MOST_NAMED = 40  # classes whose names fit beside a matrix


def thinned(steps: Sequence[int], values: Any) -> tuple[np.ndarray, np.ndarray]:
    """Average neighbors to at most ``MOST_POINTS`` points; ``values`` are numbers, or a row of numbers per step."""
    x, y = np.asarray(steps, dtype=float), np.asarray(values, dtype=float)
    if len(x) <= MOST_POINTS:
        return x, y
    edges = np.linspace(0, len(x), MOST_POINTS + 1).astype(int)
    starts, counts = edges[:-1], np.diff(edges)
    means = np.add.reduceat(y, starts, axis=0) / counts.reshape(-1, *[1] * (y.ndim - 1))
    return np.add.reduceat(x, starts) / counts, means


def smooth(values: Sequence[float]) -> np.ndarray:
    """Return an exponential mean over about 1/15 of the curve, corrected for its start."""
    values = np.asarray(values, dtype=float)
    weight = 1 - 1 / max(1.0, len(values) / 15)
    out, total, mass = np.empty_like(values), 0.0, 0.0
    for i, value in enumerate(values):
        total, mass = weight * total + (1 - weight) * value, weight * mass + (1 - weight)
        out[i] = total / mass
    return out


def noisy(axis: Any, steps: Sequence[int], values: Sequence[float]) -> None:
    """Draw a curve and its smoothed version, from 0 up."""
    x, y = thinned(steps, values)
    axis.plot(x, y, color=PALE, linewidth=0.8)
    axis.plot(x, smooth(y), color=BLUE)
    axis.set_ylim(bottom=0)


def curve(axis: Any, series: tuple[Sequence[int], Sequence[float]], color: str, label: str | None = None) -> None:
    """Draw a curve, with markers if it has few points."""
    x, y = thinned(*series)
    axis.plot(x, y, color=color, label=label, **_marked(x))


def per_class(axis: Any, series: tuple[Sequence[int], Sequence[Sequence[float]]], colors: np.ndarray) -> None:
    """Draw one curve per class, in the colors of the table of classes."""
    x, y = thinned(*series)
    for column, color in zip(y.T, colors, strict=True):
        axis.plot(x, column, color=color / 255, linewidth=1, **_marked(x))


def _marked(x: np.ndarray) -> dict[str, Any]:
    return {"marker": "o", "markersize": 3} if len(x) <= 12 else {}


def matrix(axis: Any, share: np.ndarray, names: Sequence[str]) -> None:
    """Draw a confusion matrix of shares, with numbers if they fit."""
    picture = axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axis.grid(visible=False)
    axis.set_xlabel("predicted")
    axis.set_ylabel("truth")
    if len(names) <= MOST_NAMED:
        axis.set_xticks(range(len(names)), names, rotation=90)
        axis.set_yticks(range(len(names)), names)
    if len(names) <= 21:
        for (row, column), value in np.ndenumerate(share):
            if value >= 0.005:
                color = "white" if value > 0.5 else "#333333"
                axis.text(column, row, f"{100 * value:.0f}", ha="center", va="center", color=color, fontsize=7)
    axis.figure.colorbar(picture, label="share of the class's pixels", shrink=0.7)


def figure(draw: Callable[[Sequence[Any]], None], panels: int, size: tuple[float, float] | None = None) -> str:
    """Return the SVG of axes side by side that ``draw`` fills; without ``size``, their x axes are steps."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    # Text stays text: it is sharper and smaller than outlines of letters.
    with rc_context({"svg.fonttype": "none", "font.size": 9, "axes.titlesize": 10, "svg.hashsalt": "u2pl_fast"}):
        drawing = Figure(figsize=size or (PANEL[0] * panels, PANEL[1]), layout="constrained")
        axes = drawing.subplots(1, panels, squeeze=False)[0]
        for axis in axes:
            axis.grid(alpha=0.3)
            axis.spines[["top", "right"]].set_visible(False)
        draw(axes)
        if size is None:
            for axis in axes:
                axis.set_xlabel("step")
        text = io.StringIO()
        drawing.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]
