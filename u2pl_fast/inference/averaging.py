"""The mean of several predictions for one image, windows or scales of it, a strip of rows at a time.

Probabilities at full size take B·C·H·W numbers, gigabytes for a large photo. Here they exist for a strip of the result
and for the rows of windows that are not complete yet: what is held grows with the width of the image, not with its
height.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..reference import PixelStats, label_dtype, wide

STRIP_ELEMENTS = 2**22  # probabilities of a strip: 16 MiB in fp32


class View(Protocol):
    """One prediction, asked for its probabilities from top to bottom."""

    batch: int
    num_classes: int
    device: torch.device

    def rows(self, top: int, bottom: int) -> Tensor:
        """Probabilities (B, C, bottom − top, W) of these rows of the result."""
        ...


class WholeView:
    """The probabilities of low-resolution logits (B, C, h, w) that belong to a result of ``full`` = (H, W).

    Only the first ``width`` columns are given out; padding lies beyond them.
    """

    def __init__(self, logits: Tensor, full: Sequence[int], width: int, align_corners: bool) -> None:
        self.logits, self.full, self.width, self.align_corners = wide(logits), full, width, align_corners
        self.batch, self.num_classes, self.device = *logits.shape[:2], logits.device

    def rows(self, top: int, bottom: int) -> Tensor:
        sources = _sources(self.logits.shape[-2], self.full[0], top, bottom, self.align_corners)
        return _resample(self.logits, sources, self.full[1], self.align_corners)[..., : self.width].softmax(1)


class SlidingView:
    """The mean probabilities of overlapping windows of ``image``, interpolated to a result of ``size`` = (H, W).

    Windows run through the network when the rows asked for need them; rows are forgotten when no later one does.

    Args:
        probabilities: maps a window, uint8 (B, 3, h, w), to its probabilities (B, C, h, w).
        image: (B, 3, H', W').
        window: height and width, at most the image's.
        stride: distance between windows, at most their size.
    """

    def __init__(
        self,
        probabilities: Callable[[Tensor], Tensor],
        image: Tensor,
        window: Sequence[int],
        stride: Sequence[int],
        size: Sequence[int],
    ) -> None:
        self.probabilities, self.image, self.window, self.size = probabilities, image, window, size
        height, width = image.shape[-2:]
        self.tops, self.lefts = window_starts(height, window[0], stride[0]), window_starts(width, window[1], stride[1])
        # Windows lie on a grid: the visits of a pixel are those of its row times those of its column.
        self.row_visits = _visits(self.tops, window[0], height, image.device)
        self.column_visits = _visits(self.lefts, window[1], width, image.device)
        self.done = 0  # rows of windows
        self.first = 0  # row of the image at which ``total`` begins
        self.total: Tensor | None = None
        self._next_windows(0)
        self.batch, self.num_classes, self.device = *self.total.shape[:2], image.device

    def rows(self, top: int, bottom: int) -> Tensor:
        height, width = self.image.shape[-2:]
        # Probabilities live on pixel centers, whatever the network's own grid does.
        low, high, share = _sources(height, self.size[0], top, bottom, align_corners=False)
        first, last = int(low[0]), int(high[-1])
        while self.done < len(self.tops) and self.tops[self.done] <= last:
            self._next_windows(first)
        here = slice(first, last + 1)
        visits = self.row_visits[here, None] * self.column_visits
        mean = self.total[..., first - self.first : last + 1 - self.first, :] / visits
        return _resample(mean, _Sources(low - first, high - first, share), self.size[1], align_corners=False)

    def _next_windows(self, first: int) -> None:
        """Add the next row of windows; rows of the image above ``first`` are not needed any more."""
        top = self.tops[self.done]
        bottom = top + self.window[0]
        first = min(first, top)
        added = None
        for left in self.lefts:
            here = (..., slice(top, bottom), slice(left, left + self.window[1]))
            probabilities = self.probabilities(self.image[here])
            if added is None:
                shape = (*probabilities.shape[:2], bottom - first, self.image.shape[-1])
                added = probabilities.new_zeros(shape)
                if self.total is not None:
                    kept = self.total[..., first - self.first :, :]
                    added[..., : kept.shape[-2], :] = kept
                self.total, self.first = added, first
            added[..., top - first :, left : left + self.window[1]] += probabilities
        self.done += 1


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """First pixels of the windows that cover ``length``; the last one ends flush with the border."""
    steps = -(-(length - window) // stride)
    return [min(step * stride, length - window) for step in range(steps + 1)]


def mean_stats(views: Sequence[View], size: Sequence[int]) -> PixelStats:
    """Label ``argmax p``, confidence ``max p``, entropy ``−Σ p log p`` of the mean p of all views, each (B, H, W)."""
    height, width = size
    batch, num_classes, device = views[0].batch, views[0].num_classes, views[0].device
    stats = PixelStats(
        torch.empty(batch, height, width, dtype=label_dtype(num_classes), device=device),
        torch.empty(batch, height, width, device=device),
        torch.empty(batch, height, width, device=device),
    )
    step = max(1, STRIP_ELEMENTS // (batch * num_classes * width))
    for top in range(0, height, step):
        here = (slice(None), slice(top, top + step))
        mean = views[0].rows(top, min(top + step, height))
        for view in views[1:]:
            mean = mean + view.rows(top, min(top + step, height))
        if len(views) > 1:
            mean = mean / len(views)
        stats.confidence[here], label = mean.max(1)
        stats.label[here] = label
        stats.entropy[here] = (-torch.xlogy(mean, mean).sum(1)).clamp_(min=0)
    return stats


def _visits(starts: Sequence[int], window: int, length: int, device: torch.device) -> Tensor:
    """How many windows cover each of ``length`` pixels, fp32."""
    visits = torch.zeros(length, device=device)
    for start in starts:
        visits[start : start + window] += 1
    return visits


class _Sources(NamedTuple):
    """Rows ``low`` and ``high`` between which rows of a result lie, at the fraction ``share`` of the way."""

    low: Tensor
    high: Tensor
    share: Tensor


def _sources(source: int, target: int, top: int, bottom: int, align_corners: bool) -> _Sources:
    """For rows top..bottom of ``target`` interpolated from ``source`` rows, as ``torch.nn.functional.interpolate``."""
    rows = torch.arange(top, bottom, dtype=torch.float64)
    if align_corners:
        place = rows * ((source - 1) / (target - 1) if target > 1 else 0)
    else:
        place = ((rows + 0.5) * (source / target) - 0.5).clamp(min=0)
    low = place.floor().long().clamp(max=source - 1)
    return _Sources(low, (low + 1).clamp(max=source - 1), (place - low).float())


def _resample(x: Tensor, sources: _Sources, width: int, align_corners: bool) -> Tensor:
    """Bilinear (B, C, h, w) → (B, C, rows of ``sources``, width); a side that keeps its size is not touched."""
    low, high, share = (part.to(x.device) for part in sources)
    rows = x[..., low, :]
    if share.any():
        rows = rows.lerp(x[..., high, :], share[:, None].to(x.dtype))
    if width == x.shape[-1]:
        return rows
    return F.interpolate(rows, size=(rows.shape[-2], width), mode="bilinear", align_corners=align_corners)
