"""Mix images with CutMix, ClassMix and CutOut, with one mask per step for images, labels, entropies and validity.

Sources: CutMix for segmentation, French et al. 2020 (arXiv:1906.01916); ClassMix, Olsson et al. 2021
(arXiv:2007.07936).
"""

from typing import Literal

import torch
from torch import Tensor

from .utils.randomness import generator

MixKind = Literal["cutmix", "classmix", "cutout"]
BOX_AREA = (0.25, 0.5)  # smallest and largest share of the image that a box covers


def partner_index(first_index: int, batch: int, device: torch.device | str | None = None) -> Tensor:
    """Return the position in the batch of each image's partner.

    Samples 2k and 2k+1 are partners. A sample whose partner is not in the batch is its own partner.

    Args:
        first_index: the global index of the first unlabeled sample in the batch.
        batch: B, the size of the batch.
        device: the device of the result.

    Returns:
        int64 (B).
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
    """Draw the regions to mix, without host synchronization.

    - ``cutmix``: a box of 25 to 50 % of the image, filled from the partner. - ``classmix``: half of the classes
    (rounded down) in the partner's label. Pixels outside 0..C-1 belong to no class and
      are never selected.
    - ``cutout``: a box as in ``cutmix``, which the caller marks as invalid. It needs no partner.

    Every draw depends on ``seed``, ``step`` and the global index of the sample only.

    Args:
        kind: ``cutmix``, ``classmix`` or ``cutout``.
        label: (B, H, W), any integer dtype: the (pseudo-)labels before mixing.
        seed: the seed of the run.
        step: the step of the run.
        first_index: the global index of the first unlabeled sample in the batch.
        mix_prob: the probability that an image changes.
        num_classes: C.

    Returns:
        bool (B, H, W), true in the regions to change, on the device of ``label``.

    Raises:
        ValueError: ``kind`` is unknown, or ``label`` has a wrong shape.
    """
    if kind not in ("cutmix", "classmix", "cutout"):
        raise ValueError(f"kind: expected cutmix, classmix or cutout, got {kind!r}")
    if label.dim() != 3:
        raise ValueError(f"label: expected (B, H, W), got {tuple(label.shape)}")
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
    """Replace the pixels of ``x`` where ``mask`` is true by those of the partner.

    Args:
        x: (B, H, W) or (B, C, H, W), any dtype.
        partner: int64 (B), from ``partner_index``.
        mask: bool (B, H, W), from ``region_masks``.

    Returns:
        A tensor like ``x``.

    Raises:
        ValueError: ``mask`` has another shape than ``x``.
    """
    if mask.shape != (x.shape[0], *x.shape[-2:]):
        raise ValueError(f"mask: expected {(x.shape[0], *x.shape[-2:])} like x, got {tuple(mask.shape)}")
    mask = mask if x.dim() == 3 else mask[:, None]
    return torch.where(mask, x.index_select(0, partner), x)


def _box(g: torch.Generator, height: int, width: int) -> tuple[int, int, int, int]:
    """Draw (top, bottom, left, right) of a box: uniform area, log-uniform aspect, uniform position."""
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
    """Return the regions of half of the partner's classes, those of highest ``priority`` (B, C).

    An image with negative priorities stays unmixed.
    """
    batch, num_classes = priority.shape
    theirs = label.index_select(0, partner).flatten(1).long()
    no_class = (theirs < 0) | (theirs >= num_classes)
    theirs = theirs.masked_fill(no_class, num_classes)  # an extra column, which is never chosen
    present = torch.zeros(batch, num_classes + 1, dtype=torch.bool, device=label.device)
    present = present.scatter_(1, theirs, True)[:, :num_classes]
    score = priority.masked_fill(~present, -1.0)
    rank = score.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    chosen = (score >= 0) & (rank < present.sum(1, keepdim=True) // 2)
    chosen = torch.nn.functional.pad(chosen, (0, 1), value=False)
    return chosen.gather(1, theirs).view_as(label)


def _send(x: Tensor, device: torch.device | str | None) -> Tensor:
    """Copy to the device without waiting for it."""
    if device is None or torch.device(device).type == "cpu":
        return x
    return x.pin_memory().to(device, non_blocking=True) if torch.device(device).type == "cuda" else x.to(device)
