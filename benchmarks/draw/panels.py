"""Make the panels that the drawings of the documentation share."""

from collections.abc import Sequence

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot  # noqa: E402  (the backend must be chosen before pyplot is imported: no display is needed)
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from torch import Tensor  # noqa: E402

PANEL = 3.1  # inches


def row(panels: int) -> tuple[Figure, Sequence[Axes]]:
    return pyplot.subplots(1, panels, figsize=(PANEL * panels, 0.92 * PANEL), layout="constrained")


def named(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=9)
    axes.set(xticks=[], yticks=[])


def heat(figure: Figure, axes: Axes, values: Tensor, title: str) -> None:
    shown = axes.imshow(values, cmap="magma", interpolation="nearest")
    named(axes, title)
    figure.colorbar(shown, ax=axes, shrink=0.75)
