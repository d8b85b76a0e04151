"""List the calls of the contrastive kernels' host functions whose launches are compiled ahead of time."""

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from .launches import DTYPES, LAYOUTS, Launch, launches_of


class Workload(NamedTuple):
    """Hold images, classes, grid, channels, anchors and negatives per class, and rows of the bank."""

    images: int
    classes: int
    grid: tuple[int, int]
    dim: int
    anchors: int = 256
    negatives: int = 50
    rows: int = 100_000


VOC = Workload(8, 21, (129, 129), 256)
ADE20K = Workload(8, 150, (129, 129), 256)
WORKLOADS = [
    VOC,
    ADE20K,
    Workload(8, 11, (64, 80), 128, 128),
    Workload(2, 300, (33, 17), 512),
    Workload(1, 2, (7, 9), 19),
]


def calls(w: Workload, dtype: torch.dtype, layout: str) -> Iterator[Callable[[], object]]:
    """Return the host functions as the ops call them; only shapes, dtypes and strides matter."""
    from u2pl_fast.kernels import (
        _branch,
        class_sample,
        class_sum,
        contrast_masks,
        gather_pixels,
        info_nce,
        ring_push,
        thin_mask,
    )

    def maps(channels: int) -> torch.Tensor:
        return torch.empty(w.images, channels, *w.grid, dtype=dtype, memory_format=LAYOUTS[layout])

    flags = torch.zeros(w.images, *w.grid, dtype=torch.bool)
    anchor_label = torch.full((flags.numel(),), -1, dtype=torch.int16)
    per_class, draws = torch.zeros(w.classes, dtype=torch.int64), torch.zeros(w.classes, w.anchors, dtype=torch.int64)
    ranks = dict(num_labeled=w.images // 2, low_rank=3, high_rank=20, positive_threshold=0.3)
    labels = flags.to(torch.uint8 if w.classes <= 255 else torch.int16)
    errors = torch.zeros(1, dtype=torch.int32)
    yield lambda: contrast_masks.contrast_masks(maps(w.classes), labels, flags, flags, errors, **ranks)
    words = torch.zeros(flags.numel(), -(-w.classes // 32), dtype=torch.int32)
    yield lambda: thin_mask.thin_mask(words, per_class, per_class)
    yield lambda: class_sample.class_sample(anchor_label, w.classes, draws)
    yield lambda: class_sum.class_sum(maps(w.dim), anchor_label, w.classes)
    yield lambda: gather_pixels.gather_pixels(maps(w.dim), draws)
    rows = torch.zeros(w.classes, w.anchors, w.dim, dtype=dtype)
    yield lambda: gather_pixels.gather_pixels_backward(rows, draws, (w.images, w.dim, *w.grid), LAYOUTS[layout])
    ring = (torch.empty(w.rows, w.dim, dtype=dtype), torch.zeros(w.classes + 1, dtype=torch.int64), per_class)
    for gate in (None, flags[0, 0, 0]):
        yield lambda gate=gate: ring_push.ring_push(*ring, maps(w.dim), words, gate=gate)
    yield lambda: _branch.class_weight(per_class, ring[1], per_class, per_class)
    centers = torch.zeros(w.classes, w.dim)
    for mode, shape in (
        ("per_anchor", (*draws.shape, w.negatives)),
        ("shared", (w.classes, w.negatives)),
        ("full", ()),
    ):
        indices = torch.zeros(shape, dtype=torch.int64) if shape else None
        for anchors, need_grad in ((rows, True), (rows.float(), True), (rows.float(), False)):
            drawn = need_grad and mode != "full"
            arguments = (anchors, centers[:, 0], centers, *ring, indices, mode, 0.5, need_grad, drawn)
            yield lambda arguments=arguments: info_nce.info_nce_forward(*arguments)


def launches(full: bool, target: str = "sm_90") -> list[Launch]:
    """Return distinct launches of the contrastive ops.

    Two workloads for sm_90, one for another target, or the product of workloads, dtypes and layouts.
    """
    chosen = [(VOC, torch.bfloat16, "nchw")]
    if target == "sm_90":
        chosen = [(VOC, torch.float32, "nchw"), (ADE20K, torch.bfloat16, "nhwc")]
    if full:
        chosen = list(itertools.product(WORKLOADS, DTYPES, LAYOUTS))
    return launches_of(*(call for one in chosen for call in calls(*one)), target=target)
