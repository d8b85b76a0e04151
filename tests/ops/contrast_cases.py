"""Make inputs for the tests of the contrastive ops: maps, features, and rings with a history."""

from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from tests.ops.op_cases import LAYOUTS, generator
from u2pl_fast import reference
from u2pl_fast.ops import _backend

needs_extension = pytest.mark.skipif(_backend.extension() is None, reason=f"not built; {_backend.BUILD_HINT}")


@dataclass(frozen=True)
class Batch:
    """Describe logits (images, classes, *grid); the first ``labeled`` images are labeled."""

    classes: int
    grid: tuple[int, int] = (5, 7)
    images: int = 3
    labeled: int = 1

    def __str__(self) -> str:
        return f"c{self.classes}-{self.images}x{self.grid[0]}x{self.grid[1]}-l{self.labeled}"

    @property
    def pixels(self) -> int:
        return self.images * self.grid[0] * self.grid[1]

    @property
    def ignore_index(self) -> int:
        return 255 if self.classes <= 255 else -1


BATCHES = [
    Batch(1),
    Batch(2),
    Batch(21, (5, 3), 3, 1),
    Batch(21, (1, 1), 1, 0),
    Batch(21, (1, 1), 1, 1),
    Batch(32, (2, 9), 2, 1),
    Batch(33, (3, 3), 2, 1),
    Batch(64, (3, 5), 2, 1),
    Batch(150, (3, 3), 2, 1),
    Batch(300, (2, 5), 2, 1),
    Batch(5, (6, 33), 4, 2),
    Batch(4, (3, 5), 3, 0),
    Batch(4, (3, 5), 3, 3),
]


class Maps(NamedTuple):
    """Hold the arguments and settings of contrast_masks."""

    logits: Tensor
    label: Tensor
    reliable: Tensor
    unreliable: Tensor

    def to(self, device: torch.device | str, layout: str = "nchw", dtype: torch.dtype = torch.float32) -> "Maps":
        logits = self.logits.to(device, dtype).contiguous(memory_format=LAYOUTS[layout])
        return Maps(logits, *(x.to(device) for x in self[1:]))


def make_maps(batch: Batch, ignored: float = 0.2) -> Maps:
    g = generator(batch.classes)
    shape = (batch.images, *batch.grid)
    logits = 2 * torch.randn(batch.images, batch.classes, *batch.grid, generator=g)
    likely = logits.argmax(1)
    label = torch.where(torch.rand(shape, generator=g) < 0.5, likely, torch.randint(batch.classes, shape, generator=g))
    label[torch.rand(shape, generator=g) < ignored] = batch.ignore_index
    kind = torch.rand(shape, generator=g)
    return Maps(logits, label, kind < 0.5, kind > 0.6)


def settings(batch: Batch, **changed: float) -> dict[str, float]:
    classes = batch.classes
    chosen = {
        "num_labeled": batch.labeled,
        "low_rank": min(3, classes - 1),
        "high_rank": min(20, classes),
        "positive_threshold": 0.3,
        "ignore_index": batch.ignore_index,
    }
    return chosen | changed


def make_features(batch: Batch, dim: int, dtype: torch.dtype = torch.float32, layout: str = "nchw") -> Tensor:
    features = torch.randn(batch.images, dim, *batch.grid, generator=generator(dim)).to(dtype)
    if layout == "rows":
        return reference.pixel_rows(features).contiguous()
    return features.contiguous(memory_format=LAYOUTS[layout])


def make_anchor_label(classes: int, pixels: int, present: float = 0.6, without: int | None = None) -> Tensor:
    """Return anchor labels, mostly −1; class ``without`` has no anchor."""
    g = generator(pixels)
    label = torch.randint(classes, (pixels,), generator=g)
    label[torch.rand(pixels, generator=g) > present] = -1
    if without is not None:
        label[label == without] = -1
    return label.to(torch.int16)


def make_mask(classes: int, pixels: int, share: float = 0.3, seed: int = 0) -> Tensor:
    bits = torch.rand(pixels, classes, generator=generator(seed)) < share
    return reference.pack_mask(bits)


def draw32(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 1 << 32, shape, generator=generator(seed))


class Rings(NamedTuple):
    """Hold the state of a bank."""

    bank: Tensor
    offsets: Tensor
    pushed: Tensor

    def to(self, device: torch.device) -> "Rings":
        return Rings(*(x.to(device) for x in self))

    def clone(self) -> "Rings":
        return Rings(*(x.clone() for x in self))


EMPTY = -7.0  # in unwritten slots


def make_rings(capacities: list[int], dim: int, dtype: torch.dtype = torch.float32, pushed: int = 0) -> Rings:
    """Return rings in which every class has taken ``pushed`` keys; unwritten slots hold EMPTY."""
    sizes = torch.tensor(capacities)
    offsets = torch.cat((torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)))
    rings = Rings(torch.full((int(sizes.sum()), dim), EMPTY, dtype=dtype), offsets, torch.zeros_like(sizes))
    if pushed:
        rows = torch.randn(pushed, dim, generator=generator(pushed))
        every = torch.ones(pushed, len(capacities), dtype=torch.bool)
        reference.ring_push(*rings, rows, reference.pack_mask(every))
    return rings
