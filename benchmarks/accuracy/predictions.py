"""``python -m benchmarks.accuracy.predictions --msrc DIR --work DIR --out FILE``: draw label maps of five
validation images of MSRC-21, the truth next to the prediction of each method. They use the last checkpoints in the
``--work`` folder of ``python -m benchmarks.accuracy``.

``--photographs`` draws the images too. The figure of docs/accuracy.md omits them; they may not be distributed.
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.patches import Patch

from u2pl_fast.data.folder import FolderDataset
from u2pl_fast.inference import load_model, predict_labels
from u2pl_fast.pictures.palette import colorize, palette

from .experiments import MSRC_LABELS, MSRC_MAIN_ROWS, title

# A cat, a dog, a boat, a bird and a street. With 40 labels, the first four are the hardest classes.
PHOTOGRAPHS = ("15_6_s", "16_13_s", "18_20_s", "12_27_s", "17_15_s")


def checkpoints(work: Path, seed: int) -> dict[str, Path]:
    """Return the last checkpoint of each main row of this seed that has one."""
    paths = {row: work / f"msrc-{MSRC_LABELS}-{row}-seed{seed}" / "last.pt" for row in MSRC_MAIN_ROWS}
    return {row: path for row, path in paths.items() if path.exists()}


def predictions(path: Path, images: list[np.ndarray]) -> list[np.ndarray]:
    """Return the labels (h, w) that the evaluated network of a checkpoint predicts for images (h, w, 3)."""
    network = load_model(path)[0]
    return [predict_labels(network, torch.from_numpy(x.copy()).permute(2, 0, 1)[None]).label[0].numpy() for x in images]


def draw(columns: dict[str, list[np.ndarray]], classes: list[str], path: Path) -> None:
    """Save a grid with one row per image: ``columns`` hold images (h, w, 3) or labels (h, w)."""
    rows = len(next(iter(columns.values())))
    figure, axes = plt.subplots(
        rows, len(columns), figsize=(2.6 * len(columns), 1.85 * rows + 0.9), layout="constrained", squeeze=False
    )
    for column, (name, pictures) in enumerate(columns.items()):
        axes[0, column].set_title(name, fontsize=10)
        for row, picture in enumerate(pictures):
            shown = picture if picture.ndim == 3 else colorize(picture, len(classes))
            axes[row, column].imshow(shown, interpolation="nearest")
            axes[row, column].set(xticks=[], yticks=[])
    seen = np.unique(np.concatenate([p.ravel() for own in columns.values() for p in own if p.ndim == 2]))
    handles = [Patch(color=palette(len(classes))[i] / 255, label=classes[i]) for i in seen if i < len(classes)]
    figure.legend(handles=[*handles, Patch(color="black", label="no label")], loc="outside lower center", ncols=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy.predictions",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--msrc", type=Path, required=True, metavar="DIR", help="MSRC-21, as for benchmarks.accuracy")
    parser.add_argument("--work", type=Path, default=Path("runs/accuracy"), help="folder of checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--photographs", action="store_true", help="draw the images too")
    parser.add_argument("--out", type=Path, default=Path("docs/plots/accuracy-msrc-predictions.png"))
    args = parser.parse_args(argv)
    found = checkpoints(args.work, args.seed)
    if not found:
        parser.error(f"--work: no finished run with seed {args.seed} in {args.work}; run python -m benchmarks.accuracy")
    dataset = FolderDataset(args.msrc, "val")
    places = [dataset.names.index(name) for name in PHOTOGRAPHS]
    images = [dataset.image(place) for place in places]
    columns = {"photograph": images} if args.photographs else {}
    columns["truth"] = [dataset.label(place) for place in places]
    columns |= {title(row): predictions(path, images) for row, path in found.items()}
    draw(columns, dataset.class_names, args.out)
    print(args.out)


if __name__ == "__main__":
    main()
