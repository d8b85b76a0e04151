"""``python -m benchmarks.draw.method_pictures --checkpoint RUN/last.pt``: draw the figures of docs/method.md.

They use the checkpoint, the log in its folder, and the images and settings of its run. Pseudo-labels are compared with
masks that the run did not read.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from torch import Tensor

from u2pl_fast import data, ops, reference
from u2pl_fast.data.class_weights import class_weights
from u2pl_fast.gates import Reliability, reliability
from u2pl_fast.inference import load_model
from u2pl_fast.outputs import represent
from u2pl_fast.pictures.palette import colorize, palette
from u2pl_fast.training.learner import build_criterion

from ..accuracy.runs import log_lines
from .panels import heat, named, pyplot, row

NEITHER, UNRELIABLE, RELIABLE = "#ffffff", "#d62728", "#9ecae1"
ANCHOR, NEGATIVE = (44, 160, 44), (214, 39, 40)
MEASURED = 32  # unlabeled images over which ranks are counted
POINTS = 150  # pixels of each class whose representations are drawn


class View(NamedTuple):
    """Hold an image and the outputs of a network: maps at image size, logits and representations on the grid."""

    image: Tensor
    truth: Tensor
    logits: Tensor
    stats: reference.PixelStats
    keys: Tensor


class Scene:
    """Hold the networks, settings and images of a run, and draw each figure with one method."""

    def __init__(self, checkpoint: Path, data_root: Path | None, image: int, shown: str | None) -> None:
        self.teacher, self.config, state = load_model(checkpoint, network="teacher")
        self.student = load_model(checkpoint, network="student")[0]
        self.config.data_root = data_root or self.config.data_root
        if self.config.method != "u2pl":
            raise ValueError(f"checkpoint: {checkpoint} was trained with --method {self.config.method}; it has no bank")
        self.split = data.split_dataset(self.config.build_dataset("train"), self.config.label_choice)
        self.names = list(self.split.dataset.class_names)
        shown = shown or self.names[-1]
        if shown not in self.names:
            raise ValueError(f"shown: no class {shown!r}; the classes are {', '.join(self.names)}")
        if not 0 <= image < len(self.split.unlabeled):
            raise ValueError(f"image: expected 0 .. {len(self.split.unlabeled) - 1}, got {image}")
        self.shown, self.num_classes = self.names.index(shown), len(self.names)
        weight = class_weights(self.config.class_weights, self.split)
        self.criterion = build_criterion(self.config, self.num_classes, self.split.ignore_index, class_weight=weight)
        self.criterion.bank.load_state_dict(state["bank"])
        self.log = log_lines(checkpoint.parent)

        self.unlabeled = self.view(self.split.unlabeled[image], self.teacher)
        labeled_network = self.teacher if self.config.labeled_probs == "teacher" else self.student
        views = [self.view(index, labeled_network) for index in self.split.labeled]
        self.labeled = max(views, key=lambda view: int((view.truth == self.shown).sum()))
        self.examples = views
        self.reliable, self.unreliable, _ = self.reliability_of(self.unlabeled)

    # --- Figures ------------------------------------------------------------------------------------------------------

    def partition(self) -> Figure:
        figure, axes = row(4)
        view, share = self.unlabeled, self.config.alpha
        axes[0].imshow(view.image.permute(1, 2, 0))
        named(axes[0], "unlabeled image")
        axes[1].imshow(colorize(view.stats.label[0].numpy(), self.num_classes))
        named(axes[1], "label by the teacher")
        heat(figure, axes[2], view.stats.entropy[0], "entropy, nats")
        kinds = torch.where(self.reliable, 2, self.unreliable.int())[0]
        axes[3].imshow(kinds, cmap=ListedColormap((NEITHER, UNRELIABLE, RELIABLE)), vmin=0, vmax=2)
        right = (view.stats.label[0] == view.truth)[view.truth != self.split.ignore_index]
        known = self.reliable[0][view.truth != self.split.ignore_index]
        shares = (float(right[part].float().mean()) for part in (known, ~known))
        named(axes[3], "blue: reliable, {:.0%} right\nred: unreliable, {:.0%} right".format(*shares))
        figure.suptitle(f"unreliable: entropy above γ, the {1 - share:.0%} quantile of the image", fontsize=10)
        return figure

    def ranks(self) -> Figure:
        figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.6), layout="constrained", width_ratios=(1, 1.5, 1.1))
        view, low, high = self.unlabeled, self.criterion.ranks["low_rank"], self.criterion.ranks["high_rank"]
        y, x = self._telling_pixel()
        grid = view.logits.shape[-2:]
        axes[0].imshow(view.image.permute(1, 2, 0))
        scale = [full / part for full, part in zip(view.image.shape[-2:], grid, strict=True)]
        axes[0].plot((x + 0.5) * scale[1], (y + 0.5) * scale[0], "o", ms=11, mfc="none", mec="white", mew=2)
        truth = self.names[int(self._on_grid(view.truth, grid)[y, x])]
        named(axes[0], f"one unreliable pixel, true class: {truth}")

        probability = view.logits[0, :, y, x].softmax(0)
        order = reference.class_rank(view.logits)[0, :, y, x].argsort()
        ordered = torch.arange(self.num_classes)
        negative = (ordered >= low) & (ordered < high)
        axes[1].bar(
            ordered.tolist(), probability[order].tolist(), color=[UNRELIABLE if part else RELIABLE for part in negative]
        )
        axes[1].set_yscale("log")
        axes[1].set_xticks(range(self.num_classes), [self.names[i] for i in order], rotation=40, ha="right", fontsize=8)
        axes[1].axvline(low - 0.5, color="black", linestyle="--")
        axes[1].text(low - 0.4, 0.93, f"$r_l$ = {low}", transform=axes[1].get_xaxis_transform(), fontsize=9)
        axes[1].axvline(high - 0.5, color="black", linestyle="--")
        axes[1].text(
            high - 0.6, 0.93, f"$r_h$ = {high}", transform=axes[1].get_xaxis_transform(), ha="right", fontsize=9
        )
        axes[1].set_title("its classes by probability (red: it is a negative of these)", fontsize=9)
        axes[1].set_ylabel("probability")
        axes[1].margins(x=0.02)

        for name, counts, color in zip(
            ("reliable", "unreliable"), self._ranks_of_truth(), (RELIABLE, UNRELIABLE), strict=True
        ):
            axes[2].plot(ordered + 1, 100 * counts.cumsum(0) / counts.sum(), "o-", ms=3, color=color, label=name)
        axes[2].axvline(low, color="black", linestyle="--")
        axes[2].set(xlabel="number of most likely classes", ylabel="pixels, %")
        axes[2].set_title("true class is among these", fontsize=9)
        axes[2].legend(fontsize=8, loc="lower right")
        axes[2].grid(alpha=0.3)
        return figure

    def anchors(self) -> Figure:
        figure, axes = pyplot.subplots(1, 4, figsize=(12.4, 2.9), layout="constrained")
        anchors, negatives = self._masks()
        pairs = ((self.labeled, "labeled"), (self.unlabeled, "unlabeled"))
        for image, (view, kind) in enumerate(pairs):
            axes[2 * image].imshow(view.image.permute(1, 2, 0))
            named(axes[2 * image], f"{kind} image")
            gray = F.interpolate(view.image.float().mean(0)[None, None], anchors.shape[-2:], mode="area")[0, 0]
            picture = (0.45 * gray + 110).clamp(max=255)[..., None].expand(-1, -1, 3).byte().clone()
            picture[negatives[image]] = torch.tensor(NEGATIVE, dtype=torch.uint8)
            picture[anchors[image]] = torch.tensor(ANCHOR, dtype=torch.uint8)
            axes[2 * image + 1].imshow(picture, interpolation="nearest")
            counts = (int(part[image].sum()) for part in (anchors, negatives))
            named(axes[2 * image + 1], "green: {} anchors\nred: {} negatives".format(*counts))
        figure.suptitle(f"class {self.names[self.shown]}, one square per pixel of the logits", fontsize=10)
        return figure

    def bank(self) -> Figure:
        figure, axes = pyplot.subplots(1, 3, figsize=(13.5, 3.9), layout="constrained", width_ratios=(1.15, 1, 1))
        colors = palette(self.num_classes) / 255
        anchors = [self._anchor_rows(c) for c in range(self.num_classes)]
        if not len(anchors[self.shown]):
            raise ValueError(f"shown: {self.names[self.shown]} has no anchor in the labeled images; choose another")
        everything = torch.cat(anchors)
        self._cosines(figure, axes[0], {name: a for name, a in zip(self.names, anchors, strict=True) if len(a)})

        middle = everything.mean(0)
        plane = torch.linalg.svd(everything - middle, full_matrices=False).Vh[:2]
        for c, rows in enumerate(anchors):
            self._points(axes[1], (rows - middle) @ plane.T, colors[c], self.names[c])
        axes[1].set_title("anchors of each class", fontsize=9)
        bank = self.criterion.bank
        start, held = int(bank.offsets[self.shown]), int(bank.fill[self.shown])
        keys = bank.bank[start : start + held].float()
        keys = keys[:: max(1, held // 1500)]
        shown, name = anchors[self.shown], self.names[self.shown]
        self._points(axes[2], (keys - middle) @ plane.T, "#999999", f"negatives: keys of the bank of {name}")
        self._points(axes[2], (shown - middle) @ plane.T, colors[self.shown], f"anchors of {name}")
        center = (F.normalize(shown.mean(0), dim=0) - middle) @ plane.T
        axes[2].plot(*center, "*", ms=14, mfc="white", mec="black", label="positive: mean of the anchors")
        axes[2].set_title(f"contrast of {name}", fontsize=9)
        for axis in axes[1:]:
            axis.set(xticks=[], yticks=[], xlabel="first principal direction", ylabel="second principal direction")
            axis.margins(y=0.12)
        axes[1].legend(fontsize=7, ncols=2, markerscale=3)
        axes[2].legend(fontsize=8)
        return figure

    def schedule(self) -> Figure:
        figure, axes = pyplot.subplots(1, 3, figsize=(12.4, 2.9), layout="constrained")
        per_epoch = self.split.steps_per_epoch(self.config.unlabeled_images)
        steps = [line["step"] for line in self.log if "gamma" in line]
        last = self.config.steps or round(self.config.epochs * per_epoch)
        shares = [
            reference.unreliable_share(self.config.alpha, step // per_epoch, last / per_epoch) for step in range(last)
        ]
        axes[0].plot(range(last), shares, color=UNRELIABLE)
        axes[0].axvspan(0, steps[0], color="#eeeeee")
        axes[0].set_ylim(bottom=0)
        axes[0].set_title("α_t, the unreliable share (gray: labels alone)", fontsize=9)
        named_series = (("gamma", "γ_t, entropy threshold, nats"), ("lambda_u", "λ_u, weight of L_u"))
        for axis, (name, title) in zip(axes[1:], named_series, strict=True):
            axis.plot(*self._logged(name), color="#4c78a8")
            axis.set_title(title, fontsize=9)
            axis.set_xlim(0, last)
        for axis in axes:
            axis.set_xlabel("step")
            axis.grid(alpha=0.3)
        return figure

    # --- Measurements -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def view(self, index: int, network: torch.nn.Module) -> View:
        (image, label, _) = next(data.evaluation_samples(self.split.dataset, self.config.resize, indices=[index]))
        # No padding here: crop the right and bottom edges of image and mask.
        multiple = network.pad_multiple
        height, width = (size // multiple * multiple for size in image.shape[-2:])
        label = self._on_grid(label, image.shape[-2:])[:height, :width]
        image = image[:, :height, :width]
        output = network(image[None])
        encoder = self.teacher if self.config.key_encoder == "teacher" else self.student
        represented = encoder(image[None], representations=True)
        if self.config.key_encoder == "teacher-head":
            represented = represented._replace(project=self.teacher.projection)
        keys = represent(represented)
        keys = keys if keys.dim() == 2 else reference.pixel_rows(keys)
        stats = ops.pixel_stats(output.logits, image.shape[-2:], align_corners=self.config.align_corners)
        return View(image, label, reference.pool_to_stride4(output.logits, image.shape[-2:]), stats, keys)

    def reliability_of(self, view: View) -> Reliability:
        every = torch.ones_like(view.stats.entropy, dtype=torch.bool)
        return reliability(view.stats.entropy, every, 1 - self.config.alpha)

    def _on_grid(self, x: Tensor, size: Sequence[int]) -> Tensor:
        return reference.sample_to_grid(x[None], size, align_corners=self.config.align_corners)[0]

    def _masks(self) -> tuple[Tensor, Tensor]:
        """Return the anchors and the negatives of the shown class, each (2, h, w): labeled image, unlabeled image."""
        anchor, mask = self._contrast(self.labeled, self.unlabeled)
        grid = (2, *self.unlabeled.logits.shape[-2:])
        negatives = ops.unpack_mask(mask, self.num_classes)[:, self.shown]
        return (anchor == self.shown).view(grid), negatives.view(grid)

    def _contrast(self, labeled: View, unlabeled: View) -> tuple[Tensor, Tensor]:
        grid = unlabeled.logits.shape[-2:]
        unread = torch.zeros(grid, dtype=torch.bool)
        masks = ops.contrast_masks(
            torch.cat((labeled.logits, unlabeled.logits)),
            torch.stack((self._on_grid(labeled.truth, grid), self._on_grid(unlabeled.stats.label[0], grid))),
            torch.stack((unread, self._on_grid(self.reliable[0], grid))),
            torch.stack((unread, self._on_grid(self.unreliable[0], grid))),
            num_labeled=1,
            **self.criterion.ranks,
            ignore_index=self.split.ignore_index,
        )
        return masks.anchor_label, masks.mask

    def _anchor_rows(self, c: int) -> Tensor:
        """Return normalized representations of some anchors of class c in the labeled images, (R, D)."""
        found = []
        for view in self.examples:
            grid = view.logits.shape[-2:]
            mine = self._on_grid(view.truth, grid) == c
            mine &= view.logits[0].softmax(0)[c] > self.criterion.ranks["positive_threshold"]
            found.append(F.normalize(view.keys[mine.flatten()].float(), dim=1))
        rows = torch.cat(found)
        return rows[:: max(1, len(rows) // POINTS)][:POINTS]

    def _telling_pixel(self) -> tuple[int, int]:
        """Return the unreliable pixel with the highest entropy whose label is wrong and whose class ranks below r_l."""
        view = self.unlabeled
        grid = view.logits.shape[-2:]
        truth = self._on_grid(view.truth, grid)
        rank = self._rank_of(view.logits, truth)
        telling = self._on_grid(self.unreliable[0], grid) & (truth != self.split.ignore_index)
        telling &= (rank > 0) & (rank < self.criterion.ranks["low_rank"])
        if not telling.any():
            raise ValueError("image: it has no unreliable pixel with a wrong label; choose another --image")
        entropy = torch.where(telling, self._on_grid(view.stats.entropy[0], grid), -1)
        return divmod(int(entropy.argmax()), grid[1])

    def _rank_of(self, logits: Tensor, truth: Tensor) -> Tensor:
        known = torch.where(truth == self.split.ignore_index, 0, truth).long()
        return reference.class_rank(logits)[0].gather(0, known[None])[0]

    def _ranks_of_truth(self) -> tuple[Tensor, Tensor]:
        """Count reliable and unreliable pixels by the rank of their true class, each (C)."""
        hidden = [i for i in self.split.unlabeled if self.split.dataset.has_label(i)][:MEASURED]
        counts = [torch.zeros(self.num_classes, dtype=torch.int64) for _ in range(2)]
        for index in hidden:
            view = self.view(index, self.teacher)
            *parts, _ = self.reliability_of(view)
            grid = view.logits.shape[-2:]
            truth = self._on_grid(view.truth, grid)
            rank = self._rank_of(view.logits, truth)
            for count, part in zip(counts, parts, strict=True):
                chosen = self._on_grid(part[0], grid) & (truth != self.split.ignore_index)
                count += torch.bincount(rank[chosen], minlength=self.num_classes)
        for name, count in zip(("reliable", "unreliable"), counts, strict=True):
            low = self.criterion.ranks["low_rank"]
            print(f"{name}: true class first {count[0] / count.sum():.1%}, among the first {low} "
                  f"{count[:low].sum() / count.sum():.1%}")  # fmt: skip
        return counts[0], counts[1]

    def _logged(self, name: str) -> tuple[list[int], list[Any]]:
        rows = [(line["step"], line[name]) for line in self.log if name in line]
        return [step for step, _ in rows], [value for _, value in rows]

    @staticmethod
    def _cosines(figure: Figure, axes: Axes, anchors: dict[str, Tensor]) -> None:
        centers = torch.stack([F.normalize(rows.mean(0), dim=0) for rows in anchors.values()])
        cosines = centers @ centers.T
        shown = axes.imshow(cosines, cmap="RdBu_r", vmin=-1, vmax=1)
        for y, of_class in enumerate(cosines.tolist()):
            for x, value in enumerate(of_class):
                color = "white" if abs(value) > 0.7 else "black"
                axes.text(x, y, f"{value:.1f}", ha="center", va="center", fontsize=7, color=color)
        places = range(len(anchors))
        axes.set_xticks(places, anchors, rotation=40, ha="right", fontsize=8)
        axes.set_yticks(places, anchors, fontsize=8)
        axes.set_title("cosine between class centers", fontsize=9)
        figure.colorbar(shown, ax=axes, shrink=0.75)

    @staticmethod
    def _points(axes: Axes, points: Tensor, color: Any, label: str) -> None:
        if len(points):
            axes.scatter(points[:, 0], points[:, 1], s=5, color=[color], label=label, linewidths=0)


PICTURES: dict[str, Callable[[Scene], Figure]] = {
    f.__name__: f for f in (Scene.partition, Scene.ranks, Scene.anchors, Scene.bank, Scene.schedule)
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.draw.method_pictures", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="FILE", help="last.pt of a u2pl run")
    parser.add_argument("--data-root", type=Path, metavar="DIR", help="folder of the data set. Unset: that of the run")
    parser.add_argument("--image", type=int, default=0, help="index of the unlabeled image, from 0")
    parser.add_argument("--shown", metavar="CLASS", help="class whose anchors and bank are drawn. Unset: the last")
    parser.add_argument("--out", type=Path, default=Path("docs/plots"), metavar="DIR")
    args = parser.parse_args(argv)
    try:
        scene = Scene(args.checkpoint, args.data_root, args.image, args.shown)
        args.out.mkdir(parents=True, exist_ok=True)
        for name, draw in PICTURES.items():
            path = args.out / f"method-{name}.png"
            figure = draw(scene)
            figure.savefig(path, dpi=80)
            pyplot.close(figure)
            print(path)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
