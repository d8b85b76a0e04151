"""CutMix, ClassMix and CutOut: one mask a step, which moves images, labels, entropies and validity together.

Sources: CutMix for segmentation, French et al. 2020 (arXiv:1906.01916); ClassMix, Olsson et al. 2021
(arXiv:2007.07936).
"""

from typing import Literal

import torch
from torch import Tensor

from .utils.randomness import generator

MixKind = Literal["cutmix", "classmix", "cutout"]
BOX_AREA = (0.25, 0.5)  # share of the image that a box covers


def partner_index(first_index: int, batch: int, device: torch.device | str | None = None) -> Tensor:
    """Position in the batch of each image's partner: int64 (batch,).

    The batch holds the global unlabeled samples `first_index` .. `first_index + batch - 1`. Samples 2k and 2k+1
    are partners; one whose partner is not in the batch is its own.
    """
    index = torch.arange(first_index, first_index + batch)
    partner = (index ^ 1) - first_index
    alone = (partner < 0) | (partner >= batch)
    return _send(torch.where(alone, index - first_index, partner), device)


def region_masks(
    kind: MixKind,
    label: Tensor,
    *,
    seed: int,
    step: int,
    first_index: int,
    mix_prob: float = 1.0,
    num_classes: int,
) -> Tensor:
    """The regions that change: bool (B, H, W) on the label's device, all False for an image that stays as it is.

    `label` (B, H, W), any integer dtype, holds the unmixed (pseudo-)labels of the global unlabeled samples
    `first_index` .. `first_index + B - 1`. Image i changes with probability `mix_prob`; every draw is a function of
    (seed, step, global sample index).

    - cutmix: a box of 25 to 50 % of the image, taken from the partner.
    - classmix: where the partner shows one of half (rounded down) of the classes in its label. Pixels outside
      0 .. num_classes - 1 count as no class and are never taken.
    - cutout: a box as in cutmix, but nothing takes its place: the caller makes it invalid. Needs no partner.

    No host synchronization: the draws are made on the CPU and sent as B (or B x C) small numbers.
    """
    if kind not in ("cutmix", "classmix", "cutout"):
        raise ValueError(f"kind must be cutmix, classmix or cutout, got {kind!r}")
    if label.dim() != 3:
        raise ValueError(f"label must be (B, H, W), got {tuple(label.shape)}")
    batch, height, width = label.shape
    partner = partner_index(first_index, batch)
    generators = [generator(seed, "mix", step, first_index + i) for i in range(batch)]
    changes = torch.tensor([torch.rand((), generator=g).item() < mix_prob for g in generators], dtype=torch.bool)
    if kind != "cutout":
        changes &= partner != torch.arange(batch)
    if kind == "classmix":
        priority = torch.stack([torch.rand(num_classes, generator=g) for g in generators])
        priority = priority.masked_fill(~changes[:, None], -1.0)
        return _class_regions(label, _send(partner, label.device), _send(priority, label.device))
    boxes = torch.tensor([_box(g, height, width) for g in generators]) * changes[:, None]
    return _box_regions(_send(boxes, label.device), height, width)


def mix(x: Tensor, partner: Tensor, mask: Tensor) -> Tensor:
    """`x` (B, H, W) or (B, C, H, W), any dtype, with the partner's pixels where `mask` (B, H, W) is True."""
    if mask.shape != (x.shape[0], *x.shape[-2:]):
        raise ValueError(f"mask must be {(x.shape[0], *x.shape[-2:])} for x {tuple(x.shape)}, got {tuple(mask.shape)}")
    mask = mask if x.dim() == 3 else mask[:, None]
    return torch.where(mask, x.index_select(0, partner), x)


def _box(g: torch.Generator, height: int, width: int) -> tuple[int, int, int, int]:
    """(top, bottom, left, right): uniform area, log-uniform split of it between the sides, uniform place."""
    area, split, down, across = torch.rand(4, generator=g, dtype=torch.float64).tolist()
    area = BOX_AREA[0] + (BOX_AREA[1] - BOX_AREA[0]) * area
    tall, wide = round(height * area**split), round(width * area ** (1 - split))
    top, left = round(down * (height - tall)), round(across * (width - wide))
    return top, top + tall, left, left + wide


def _box_regions(boxes: Tensor, height: int, width: int) -> Tensor:
    top, bottom, left, right = (side.view(-1, 1, 1) for side in boxes.unbind(1))
    row = torch.arange(height, device=boxes.device).view(1, -1, 1)
    column = torch.arange(width, device=boxes.device).view(1, 1, -1)
    return (row >= top) & (row < bottom) & (column >= left) & (column < right)


def _class_regions(label: Tensor, partner: Tensor, priority: Tensor) -> Tensor:
    """Half of the partner's classes, those of highest `priority` (B, C); an image with negative ones stays unmixed."""
    batch, num_classes = priority.shape
    theirs = label.index_select(0, partner).flatten(1).long()
    no_class = (theirs < 0) | (theirs >= num_classes)
    theirs = theirs.masked_fill(no_class, num_classes)  # a column of its own, never chosen
    present = torch.zeros(batch, num_classes + 1, dtype=torch.bool, device=label.device)
    present = present.scatter_(1, theirs, True)[:, :num_classes]
    score = priority.masked_fill(~present, -1.0)
    rank = score.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    chosen = (score >= 0) & (rank < present.sum(1, keepdim=True) // 2)
    chosen = torch.nn.functional.pad(chosen, (0, 1), value=False)
    return chosen.gather(1, theirs).view_as(label)


def _send(x: Tensor, device: torch.device | str | None) -> Tensor:
    """To the device without waiting for it."""
    if device is None or torch.device(device).type == "cpu":
        return x
    return x.pin_memory().to(device, non_blocking=True) if torch.device(device).type == "cuda" else x.to(device)
