"""``python -m benchmarks.draw.op_pictures``: draw the pictures of the ops for the documentation, with the ops.

The inputs are those of the ``camvid`` workload: four labeled and four unlabeled images, 11 classes, logits at a quarter
of the image size. Representations are built from the probabilities, as if the network were trained.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from torch import Tensor

from u2pl_fast import ops, reference
from u2pl_fast.gates import reliability
from u2pl_fast.utils.randomness import generator

from ..measure.inputs import UNRELIABLE_SHARE, Inputs, mask_settings
from ..measure.workloads import NAMED
from .panels import heat, named, pyplot, row

WORKLOAD = NAMED["camvid"]
CLASSES = ListedColormap([*pyplot.get_cmap("tab20").colors[: WORKLOAD.num_classes]])
SHOWN = 3  # a class with many negatives in the first unlabeled image


class Pictures:
    """Hold the shared inputs and draw each picture with one method."""

    def __init__(self) -> None:
        self.inputs = Inputs(WORKLOAD, "cpu", torch.float32, "contiguous", "capped")
        self.logits = self.inputs.all_logits
        probability = self.logits.softmax(1)
        directions = torch.randn(WORKLOAD.num_classes, WORKLOAD.dim, generator=generator(0, "pictures"))
        noise = torch.randn(WORKLOAD.images, WORKLOAD.dim, *WORKLOAD.grid, generator=generator(1, "pictures"))
        self.features = torch.einsum("bchw,cd->bdhw", probability, directions) + 0.5 * noise
        self.stats = ops.pixel_stats(self.inputs.unlabeled_logits, WORKLOAD.crop)
        self.masks = ops.contrast_masks(self.logits, *self.inputs.grid_maps, **mask_settings(WORKLOAD))

    def pixel_stats(self) -> Figure:
        figure, axes = row(4)
        low, rows, columns = self.inputs.unlabeled_logits[0].argmax(0), slice(22, 43), slice(26, 52)
        _classes(axes[0], low[rows, columns], "argmax of the logits (crop)")
        full = [slice(4 * part.start, 4 * part.stop) for part in (rows, columns)]
        _classes(axes[1], self.stats.label[0][tuple(full)], "label (same crop)")
        heat(figure, axes[2], self.stats.confidence[0], "confidence")
        heat(figure, axes[3], self.stats.entropy[0], "entropy, nats")
        return figure

    def upsampled_cross_entropy(self) -> Figure:
        figure, axes = row(3)
        logits, labels = self.inputs.labeled_logits.clone().requires_grad_(), self.inputs.labels
        ops.upsampled_cross_entropy(logits, labels, reduction="sum").backward()
        _classes(axes[0], logits[0].detach().argmax(0), f"argmax of the logits, {logits.shape[2]}×{logits.shape[3]}")
        _classes(axes[1], labels[0], f"target, {labels.shape[1]}×{labels.shape[2]} (white: ignored)")
        heat(figure, axes[2], logits.grad[0].abs().sum(0), "Σ |gradient| over classes, low resolution")
        return figure

    def masked_quantile(self) -> Figure:
        figure, axes = row(3)
        entropy, valid = self.stats.entropy, self.inputs.valid
        reliable, unreliable, gamma = reliability(entropy, valid, 1 - UNRELIABLE_SHARE)
        axes[0].hist(entropy[valid].numpy(), bins=60, color="#7f7f7f")
        axes[0].axvline(float(gamma), color="#d62728", label=f"γ = {float(gamma):.3f}, 80% quantile")
        axes[0].set(xlabel="nats", yscale="log", box_aspect=0.8)
        axes[0].set_title("entropies of valid pixels", fontsize=9)
        axes[0].legend(fontsize=8, loc="lower left")
        heat(figure, axes[1], entropy[-1], "entropy")
        kinds = torch.where(reliable, 2, torch.where(unreliable, 1, 0))[-1]
        colors = ("#ffffff", "#d62728", "#9ecae1")
        axes[2].imshow(kinds, cmap=ListedColormap(colors), vmin=0, vmax=2, interpolation="nearest")
        named(axes[2], "blue: H < γ, red: H > γ, white: invalid")
        return figure

    def ohem_mask(self) -> Figure:
        figure, axes = row(3)
        logits, labels = self.inputs.labeled_logits, self.inputs.labels
        keep = ops.ohem_mask(logits, labels, threshold=0.7, min_kept=20_000)
        full = reference.upsample(logits, labels.shape[-2:]).softmax(1)
        shown = full.gather(1, torch.where(labels == 255, 0, labels).long()[:, None])[0, 0]
        _classes(axes[0], labels[0], "target (white: ignored)")
        heat(figure, axes[1], torch.where(labels[0] == 255, torch.nan, shown), "p(target)")
        axes[2].imshow(keep[0], cmap=ListedColormap(["#ffffff", "#2ca02c"]), interpolation="nearest")
        named(axes[2], f"selected: {100 * float(keep.float().mean()):.0f}% of the pixels")
        return figure

    def contrast_masks(self) -> Figure:
        figure, axes = row(4)
        grid, image = (WORKLOAD.images, *WORKLOAD.grid), WORKLOAD.labeled
        anchors = self.masks.anchor_label.view(grid)[image]
        keys = ops.unpack_mask(self.masks.mask, WORKLOAD.num_classes)
        counts = keys.sum(1).view(grid)[image]
        _classes(axes[0], torch.where(anchors < 0, 255, anchors), "anchor_label (white: no anchor)")
        heat(figure, axes[1], counts, "number of classes it is a negative of")
        cap = torch.full((WORKLOAD.num_classes,), 400)
        thin = ops.unpack_mask(ops.thin_mask(self.masks.mask, cap, self.inputs.thin_draw), WORKLOAD.num_classes)
        both = (keys[:, SHOWN].int() + thin[:, SHOWN].int()).view(grid)[image]
        axes[2].imshow(both, cmap=ListedColormap(["#ffffff", "#c6dbef", "#08306b"]), interpolation="nearest")
        named(axes[2], f"thin_mask: negatives of class {SHOWN} (dark: kept)")
        draws = self.inputs.anchor_draw[:, :60]
        index = ops.class_sample(self.masks.anchor_label, WORKLOAD.num_classes, draws)
        height, width = WORKLOAD.grid
        _classes(axes[3], torch.where(anchors < 0, 255, anchors), "class_sample: 60 samples per class")
        for pixels in index:
            here = pixels[(pixels >= 0) & (pixels // (height * width) == image)] % (height * width)
            axes[3].scatter(here % width, here // width, s=11, color="white", edgecolor="black", linewidth=0.8)
        return figure

    def ring_push(self) -> Figure:
        """Show the step that wrote each slot, after six small pushes into rings of 240."""
        figure, axes = pyplot.subplots(1, 1, figsize=(9, 2.6), layout="constrained")
        capacity, classes = 240, WORKLOAD.num_classes
        offsets = torch.arange(classes + 1) * capacity
        bank, pushed = torch.zeros(classes * capacity, 1), torch.zeros(classes, dtype=torch.int64)
        written = torch.full((classes, capacity), float("nan"))
        cap = torch.arange(20, 20 + 6 * classes, 6)
        for step in range(6):
            before = pushed.clone()
            mask = ops.thin_mask(self.masks.mask, cap, self.inputs.thin_draw)
            ops.ring_push(bank, offsets, pushed, self.features[:, :1].contiguous(), mask)
            for c in range(classes):
                written[c, torch.arange(int(before[c]), int(pushed[c])) % capacity] = step + 1
        shown = axes.imshow(
            written, aspect="auto", cmap=pyplot.get_cmap("viridis", 6), vmin=0.5, vmax=6.5, interpolation="nearest"
        )
        axes.set(xlabel="slot of the ring, K = 240", ylabel="class", yticks=range(0, classes, 2))
        axes.set_title("step that wrote each slot (white: empty)", fontsize=10)
        figure.colorbar(shown, ax=axes, ticks=range(1, 7), label="step")
        return figure

    def info_nce(self) -> Figure:
        figure, axes = pyplot.subplots(1, 2, figsize=(9, 3), layout="constrained")
        classes = WORKLOAD.num_classes
        sums = ops.class_sum(self.features, self.masks.anchor_label, classes)
        centers = F.normalize(sums, dim=1)
        shown = axes[0].imshow(centers @ centers.T, cmap="viridis", vmin=0, vmax=1)
        axes[0].set(xlabel="class", ylabel="class", xticks=range(0, classes, 2), yticks=range(0, classes, 2))
        axes[0].set_title("class_sum: cosine of the class centers", fontsize=10)
        figure.colorbar(shown, ax=axes[0])
        capacity = 2000
        offsets = torch.arange(classes + 1) * capacity
        bank = torch.zeros(classes * capacity, WORKLOAD.dim)
        pushed = torch.zeros(classes, dtype=torch.int64)
        ops.ring_push(bank, offsets, pushed, self.features, self.masks.mask)
        index = ops.class_sample(self.masks.anchor_label, classes, self.inputs.anchor_draw)
        anchors = ops.gather_pixels(self.features, index)
        with_anchor = (self.masks.anchors > 0) & (pushed > 0)
        loss = ops.info_nce(
            *(anchors, with_anchor / with_anchor.sum(), sums, bank, offsets, pushed),
            negatives="full",
        )
        z = F.normalize(anchors, dim=2)
        used = with_anchor.nonzero()[:, 0].tolist()
        near = torch.cat([z[c] @ centers[c] for c in used])
        far = torch.cat(
            [(z[c] @ bank[offsets[c] : offsets[c] + min(int(pushed[c]), capacity)].T).flatten()[::50] for c in used]
        )
        bins = torch.linspace(-0.6, 1, 60).tolist()
        axes[1].hist(near.numpy(), bins=bins, density=True, alpha=0.7, label="s⁺: anchors and their center")
        axes[1].hist(far.numpy(), bins=bins, density=True, alpha=0.7, label="s⁻: anchors and keys of their class")
        axes[1].set(xlabel="cosine", yticks=[])
        axes[1].set_title(f"info_nce over all keys: {float(loss):.2f}", fontsize=10)
        axes[1].legend(fontsize=8, loc="upper left")
        return figure


def _classes(axes: Axes, label: Tensor, title: str) -> None:
    """Show class ids as colors, and 255 as white."""
    shown = torch.where(label == 255, float("nan"), label.float())
    axes.imshow(shown, cmap=CLASSES, vmin=-0.5, vmax=WORKLOAD.num_classes - 0.5, interpolation="nearest")
    named(axes, title)


PICTURES: dict[str, Callable[[Pictures], Figure]] = {
    f.__name__: f
    for f in (
        Pictures.pixel_stats,
        Pictures.upsampled_cross_entropy,
        Pictures.masked_quantile,
        Pictures.ohem_mask,
        Pictures.contrast_masks,
        Pictures.ring_push,
        Pictures.info_nce,
    )
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.draw.op_pictures", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/plots"), metavar="DIR")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    pictures = Pictures()
    for name, draw in PICTURES.items():
        path = args.out / f"op-{name.replace('_', '-')}.png"
        figure = draw(pictures)
        figure.savefig(path, dpi=90)
        pyplot.close(figure)
        print(path)


if __name__ == "__main__":
    main()
