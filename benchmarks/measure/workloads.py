"""Define the named workloads: the sizes that one training step of a real configuration passes to each op."""

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True)
class Workload:
    """Hold the sizes of one training step.

    ``labeled`` and ``unlabeled`` images of ``num_classes`` classes, cropped to ``crop`` pixels, logits and features on
    ``grid``; ``dim`` representation channels, ``anchors`` sampled per class, ``negatives`` sampled per anchor, rings of
    ``capacity`` keys (``background_capacity`` for class 0). An image shows ``classes_per_image`` classes. With a capped
    bank, a class takes ``max_keys`` keys from a step; None is a sixteenth of its ring.
    """

    name: str
    labeled: int
    unlabeled: int
    num_classes: int
    crop: tuple[int, int]
    grid: tuple[int, int]
    dim: int
    anchors: int
    negatives: int
    capacity: int
    background_capacity: int
    classes_per_image: int
    max_keys: int | None = None

    @property
    def align_corners(self) -> bool:
        """Return whether grid and crop share their corners, as for odd crops: (513 − 1) / 4 + 1 = 129."""
        return self.crop[0] % 2 == 1

    @property
    def images(self) -> int:
        return self.labeled + self.unlabeled

    @property
    def grid_pixels(self) -> int:
        """Return P, the number of pixels on the grid of all images."""
        return self.images * self.grid[0] * self.grid[1]

    @property
    def capacities(self) -> list[int]:
        return [self.background_capacity] + [self.capacity] * (self.num_classes - 1)

    @property
    def caps(self) -> list[int]:
        return [max(1, k // 16) if self.max_keys is None else self.max_keys for k in self.capacities]

    @property
    def low_rank(self) -> int:
        return min(3, self.num_classes - 1)

    @property
    def high_rank(self) -> int:
        return min(20, self.num_classes)

    @property
    def ignore_index(self) -> int:
        return 255 if self.num_classes <= 255 else -1

    @property
    def network(self) -> list[tuple[int, ...]]:
        """Return the shapes of the weights of a ResNet-101, each with the scale, shift, mean and variance of its norm.

        Its width follows the dimension of the representations: the published width, 64, for D = 256.
        """
        width = self.dim // 4
        convolutions, channels = [(width, 3, 7, 7)], width
        for stage, blocks in enumerate((3, 4, 23, 3)):
            inner, outer = width << stage, 4 * width << stage
            for block in range(blocks):
                convolutions += [(inner, channels, 1, 1), (inner, inner, 3, 3), (outer, inner, 1, 1)]
                if block == 0:
                    convolutions.append((outer, channels, 1, 1))
                channels = outer
        return [shape for weight in convolutions for shape in (weight, *[weight[:1]] * 4)]


NAMED = {
    workload.name: workload
    for workload in (
        Workload("voc", 4, 4, 21, (513, 513), (129, 129), 256, 256, 50, 30_000, 50_000, 3),
        Workload("cityscapes", 2, 2, 19, (769, 769), (193, 193), 256, 256, 50, 30_000, 30_000, 13),
        Workload("ade20k", 4, 4, 150, (513, 513), (129, 129), 256, 256, 50, 10_000, 10_000, 9),
        Workload("camvid", 4, 4, 11, (256, 320), (64, 80), 128, 128, 50, 20_000, 20_000, 8),
        # These two try out the suite in seconds. Their times mean nothing.
        Workload("tiny", 2, 2, 7, (65, 81), (17, 21), 32, 16, 8, 200, 300, 3),
        Workload("tiny-wide", 3, 2, 40, (50, 70), (25, 35), 19, 5, 3, 100, 70, 9),  # two words a mask, no corner shared
    )
}
REPORTED = ("voc", "cityscapes", "ade20k", "camvid")
PAD = 16  # the network needs crops divisible by this


def trained(w: Workload) -> Workload:
    """Return the workload with a crop that the network takes: 513 becomes 512, and corners are no longer shared."""
    crop = tuple(n // PAD * PAD for n in w.crop)
    return dataclasses.replace(w, crop=crop, grid=tuple(n // 4 for n in crop))
