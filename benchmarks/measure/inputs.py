"""Make inputs that resemble a training run: confident regions, uncertain borders, missing labels.

Everything depends only on the workload and the kind of device, so every implementation and every process measures the
same numbers. They are drawn on the device: on a GPU that takes milliseconds, and copying them there would not.
"""

from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from u2pl_fast import ops, reference
from u2pl_fast.gates import reliability
from u2pl_fast.ops import draw32
from u2pl_fast.utils.randomness import generator

from .workloads import Workload

UNRELIABLE_SHARE = 0.2
POSITIVE_THRESHOLD = 0.3
TEMPERATURE = 0.5
ABSENT = -6.0
CONTRAST = 4.0
NOISE = 0.7


class Inputs:
    """Hold the tensors of one workload, each made when first used, and shared by all ops that read it.

    The bank is made again for each call, because the ops change it in place. ``bank`` chooses the keys that enter it:
    all (``literal``) or ``capped``. It may be set again between two ops.
    """

    def __init__(
        self, workload: Workload, device: str, dtype: torch.dtype, layout: str, bank: str | None = None
    ) -> None:
        self.workload, self.device, self.dtype, self.layout, self.bank = workload, device, dtype, layout, bank
        self._push_masks: dict[str | None, Tensor] = {}

    def _generator(self, purpose: str) -> torch.Generator:
        return generator(0, "benchmark", self.workload.name, purpose, device=self.device)

    def _randn(self, purpose: str, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator(purpose), device=self.device)

    def _place(self, x: Tensor) -> Tensor:
        x = x.to(self.device, self.dtype)
        return x.contiguous(memory_format=torch.channels_last) if self.layout == "channels_last" else x

    @cached_property
    def _fields(self) -> tuple[Tensor, Tensor]:
        """Return (classes (B, k) of each image, smooth score fields (B, k, h, w)): large regions with soft borders."""
        w, draw = self.workload, self._generator("fields")
        every = [torch.randperm(w.num_classes, generator=draw, device=self.device) for _ in range(w.images)]
        present = torch.stack(every)[:, : min(w.classes_per_image, w.num_classes)]
        coarse = torch.randn(*present.shape, 5, 5, generator=draw, device=self.device)
        return present, CONTRAST * F.interpolate(coarse, size=w.grid, mode="bicubic", align_corners=True)

    @cached_property
    def all_logits(self) -> Tensor:
        """Return (B, C, h, w) logits of all images, labeled images first."""
        w = self.workload
        present, fields = self._fields
        logits = torch.full((w.images, w.num_classes, *w.grid), ABSENT, device=self.device)
        logits.scatter_(1, present[:, :, None, None].expand_as(fields), fields)
        logits += NOISE * self._randn("noise", *logits.shape)
        return self._place(_off_threshold(logits.to(self.dtype)))

    @property
    def labeled_logits(self) -> Tensor:
        return self.all_logits[: self.workload.labeled]

    @property
    def unlabeled_logits(self) -> Tensor:
        return self.all_logits[self.workload.labeled :]

    @cached_property
    def labels(self) -> Tensor:
        """Return (B_l, H, W) labels: the fields' classes; borders and a padded strip are ignored."""
        w = self.workload
        present, fields = self._fields
        dtype = torch.uint8 if w.num_classes <= 255 else torch.int16
        labels = torch.empty(w.labeled, *w.crop, dtype=dtype, device=self.device)
        for image in range(w.labeled):
            full = F.interpolate(fields[image, None], size=w.crop, mode="bilinear", align_corners=w.align_corners)[0]
            best = full.topk(min(2, len(full)), dim=0)
            labels[image] = present[image][best.indices[0]].to(dtype)
            labels[image][best.values[0] - best.values[-1] < 0.1] = w.ignore_index
        labels[0, -w.crop[0] // 16 :] = w.ignore_index
        return labels

    @cached_property
    def statistics(self) -> reference.PixelStats:
        """Return the pixel statistics of the unlabeled images, computed image by image to use less memory."""
        w = self.workload
        logits = self.unlabeled_logits
        each = [ops.pixel_stats(image[None], w.crop, align_corners=w.align_corners) for image in logits]
        return reference.PixelStats(*(torch.cat(maps) for maps in zip(*each, strict=True)))

    @cached_property
    def valid(self) -> Tensor:
        """Return (B_u, H, W): all pixels but a padded strip in one image."""
        w = self.workload
        valid = torch.ones(w.unlabeled, *w.crop, dtype=torch.bool, device=self.device)
        valid[-1, :, -w.crop[1] // 16 :] = False
        return valid

    @cached_property
    def grid_maps(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return (label, reliable, unreliable), each (B, h, w), labeled images first."""
        with ops.use_backend("reference"):  # inputs must not depend on the op that they measure
            reliable, unreliable, _ = reliability(self.statistics.entropy, self.valid, 1 - UNRELIABLE_SHARE)
        maps = (self.labels, self.statistics.label, reliable, unreliable)
        return to_grid(*maps, self.workload.grid, self.workload.align_corners)

    @cached_property
    def masks(self) -> reference.ContrastMasks:
        return reference.contrast_masks(self.all_logits, *self.grid_maps, **mask_settings(self.workload))

    @property
    def max_keys(self) -> Tensor:
        """Return int64 (C): the keys that a class takes from one step; 0 means all."""
        caps = torch.tensor(self.workload.caps, device=self.device)
        return torch.zeros_like(caps) if self.bank == "literal" else caps

    @property
    def push_mask(self) -> Tensor:
        """Return int32 (P, ⌈C/32⌉): the keys that enter the bank."""
        if self.bank not in self._push_masks:
            self._push_masks[self.bank] = reference.thin_mask(self.masks.mask, self.max_keys, self.thin_draw)
        return self._push_masks[self.bank]

    @cached_property
    def features(self) -> Tensor:
        """Return (B, D, h, w) dense representations."""
        w = self.workload
        return self._place(self._randn("features", w.images, w.dim, *w.grid))

    @cached_property
    def student(self) -> list[Tensor]:
        """Return the tensors of a network, in float32."""
        draw = self._generator("student")
        return [torch.randn(shape, generator=draw, device=self.device) for shape in self.workload.network]

    @cached_property
    def thin_draw(self) -> Tensor:
        return draw32((self.workload.num_classes,), self._generator("thin"))

    @cached_property
    def anchor_draw(self) -> Tensor:
        w = self.workload
        return draw32((w.num_classes, w.anchors), self._generator("anchors"))

    @cached_property
    def negative_draw(self) -> Tensor:
        w = self.workload
        return draw32((w.num_classes, w.anchors, w.negatives), self._generator("negatives"))

    @cached_property
    def offsets(self) -> Tensor:
        return F.pad(torch.tensor(self.workload.capacities, device=self.device).cumsum(0), (1, 0))

    def new_bank(self) -> tuple[Tensor, Tensor]:
        """Return (bank (Σ K_c, D), pushed (C)): every ring full and in its second turn, as in the middle of a run.

        A block of random unit rows is repeated: every page of memory is written, without drawing 400 million numbers.
        """
        w = self.workload
        rows = sum(w.capacities)
        block = F.normalize(self._randn("bank", 4096, w.dim), dim=1).to(self.dtype)
        bank = torch.empty(rows, w.dim, dtype=self.dtype, device=self.device)
        for start in range(0, rows, len(block)):
            bank[start : start + len(block)] = block[: rows - start]
        sizes = torch.tensor(w.capacities, device=self.device)
        return bank, sizes + sizes // 3


def _off_threshold(logits: Tensor) -> Tensor:
    """Scale the few pixels whose confidence is within 1e-4 of the anchor threshold, where rounding would decide."""
    for _ in range(20):
        p = logits.float().softmax(1)
        close = ((p - POSITIVE_THRESHOLD).abs() < 1e-4).any(1, keepdim=True)
        if not close.any():
            break
        logits = torch.where(close, logits * 1.03, logits)
    return logits


def to_grid(
    labels: Tensor, pseudo: Tensor, reliable: Tensor, unreliable: Tensor, grid: tuple[int, int], align_corners: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (label, reliable, unreliable) at (B, h, w), labeled images first, from the maps at H×W."""
    unread = torch.zeros_like(labels, dtype=torch.bool)
    pairs = ((labels, pseudo), (unread, reliable), (unread, unreliable))
    return tuple(
        torch.cat([reference.sample_to_grid(part, grid, align_corners=align_corners) for part in pair])
        for pair in pairs
    )


def mask_settings(w: Workload) -> dict[str, float]:
    """Return the arguments of ``contrast_masks`` that are not tensors."""
    return {
        "num_labeled": w.labeled,
        "low_rank": w.low_rank,
        "high_rank": w.high_rank,
        "positive_threshold": POSITIVE_THRESHOLD,
        "ignore_index": w.ignore_index,
    }
