"""Average several predictions for one image, over windows or scales, in strips of rows.

Probabilities at full size take B·C·H·W numbers, gigabytes for a large image. Here they exist only for a strip of the
result and for incomplete rows of windows, so memory grows with the image's width, not with its height.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..reference import PixelStats, label_dtype, wide

STRIP_ELEMENTS = 2**22  # probabilities per strip: 16 MiB in float32


class View(Protocol):
    """Describe one prediction, whose probabilities are requested from top to bottom."""

    batch: int
    num_classes: int
    device: torch.device

    def rows(self, top: int, bottom: int) -> Tensor:
        """Return probabilities (B, C, bottom − top, W) of these rows of the result."""
        ...


class WholeView:
    """Return probabilities of low-resolution logits (B, C, h, w) for a result of ``full`` = (H, W).

    Only the first ``width`` columns are returned; the rest is padding.
    """

    def __init__(self, logits: Tensor, full: Sequence[int], width: int, align_corners: bool) -> None:
        self.logits, self.full, self.width, self.align_corners = wide(logits), full, width, align_corners
        self.batch, self.num_classes, self.device = *logits.shape[:2], logits.device

    def rows(self, top: int, bottom: int) -> Tensor:
        sources = _sources(self.logits.shape[-2], self.full[0], top, bottom, self.align_corners)
        return _resample(self.logits, sources, self.full[1], self.align_corners)[..., : self.width].softmax(1)


class SlidingView:
    """Return mean probabilities of overlapping windows of ``image``, for a result of ``size`` = (H, W).

    Windows run through the network when requested rows need them. Rows that no later request needs are dropped.

    Args:
        probabilities: maps a window, uint8 (B, N, h, w), to its probabilities (B, C, h, w).
        image: (B, N, H', W').
        window: height and width, at most the image's.
        stride: distance between windows, at most their size.
        size: height and width of the result; probabilities are interpolated to it.
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
        # Windows form a grid: a pixel's visits are the product of its row's and its column's.
        self.row_visits = _visits(self.tops, window[0], height, image.device)
        self.column_visits = _visits(self.lefts, window[1], width, image.device)
        self.done = 0  # rows of windows
        self.first = 0  # row of the image at which ``total`` begins
        self.total: Tensor | None = None
        self._next_windows(0)
        self.batch, self.num_classes, self.device = *self.total.shape[:2], image.device

    def rows(self, top: int, bottom: int) -> Tensor:
        height, width = self.image.shape[-2:]
        # Probabilities are at pixel centers, regardless of align_corners.
        low, high, share = _sources(height, self.size[0], top, bottom, align_corners=False)
        first, last = int(low[0]), int(high[-1])
        while self.done < len(self.tops) and self.tops[self.done] <= last:
            self._next_windows(first)
        here = slice(first, last + 1)
        visits = self.row_visits[here, None] * self.column_visits
        mean = self.total[..., first - self.first : last + 1 - self.first, :] / visits
        return _resample(mean, _Sources(low - first, high - first, share), self.size[1], align_corners=False)

    def _next_windows(self, first: int) -> None:
        """Add the next row of windows; image rows above ``first`` are no longer needed."""
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
    """Return the first pixels of the windows that cover ``length``; the last window ends at the border."""
    steps = -(-(length - window) // stride)
    return [min(step * stride, length - window) for step in range(steps + 1)]


def mean_stats(views: Sequence[View], size: Sequence[int]) -> PixelStats:
    """Return label ``argmax p``, confidence ``max p`` and entropy ``−Σ p log p`` of the mean p of all views.

    Each is (B, H, W).
    """
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
    """Return how many windows cover each of ``length`` pixels, float32."""
    visits = torch.zeros(length, device=device)
    for start in starts:
        visits[start : start + window] += 1
    return visits


class _Sources(NamedTuple):
    """Hold source rows ``low`` and ``high``, and the weight ``share`` of ``high``, for rows of a result."""

    low: Tensor
    high: Tensor
    share: Tensor


def _sources(source: int, target: int, top: int, bottom: int, align_corners: bool) -> _Sources:
    """Return the sources of rows top..bottom of ``target``, as in ``torch.nn.functional.interpolate``."""
    rows = torch.arange(top, bottom, dtype=torch.float64)
    if align_corners:
        place = rows * ((source - 1) / (target - 1) if target > 1 else 0)
    else:
        place = ((rows + 0.5) * (source / target) - 0.5).clamp(min=0)
    low = place.floor().long().clamp(max=source - 1)
    return _Sources(low, (low + 1).clamp(max=source - 1), (place - low).float())


def _resample(x: Tensor, sources: _Sources, width: int, align_corners: bool) -> Tensor:
    """Resize (B, C, h, w) bilinearly to (B, C, rows of ``sources``, width); a side of equal size is copied."""
    low, high, share = (part.to(x.device) for part in sources)
    rows = x[..., low, :]
    if share.any():
        rows = rows.lerp(x[..., high, :], share[:, None].to(x.dtype))
    if width == x.shape[-1]:
        return rows
    return F.interpolate(rows, size=(rows.shape[-2], width), mode="bilinear", align_corners=align_corners)
