"""Compute label, confidence and entropy of full-resolution pixels from low-resolution logits, in one pass."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import reference
from ..reference import PixelStats
from . import _backend, _checks


def pixel_stats(logits: Tensor, size: Sequence[int], *, align_corners: bool = False) -> PixelStats:
    """Compute label, confidence and entropy of softmax(upsample(logits)) at each pixel.

    The upsampled logits are never stored.

    With l the logits upsampled as ``torch.nn.functional.interpolate(mode="bilinear")`` does, d = l − max l and S = Σ_c
    e^d, in nats:

        label = argmax l,  confidence = 1 / S = max p,  entropy = log S − (Σ_c d·e^d) / S

    A tie goes to the lower class. The result has no gradient.

    Args:
        logits: (B, C, h, w), contiguous or channels_last; float32, bfloat16, float16 or float64.
        size: (H, W), larger or smaller than (h, w).
        align_corners: as in ``torch.nn.functional.interpolate``.

    Returns:
        ``PixelStats(label, confidence, entropy)``, each (B, H, W). The label is uint8, or int16 if C > 255; the others
            are float32, or float64 for float64 logits.

    Raises:
        ValueError: an argument has a wrong shape.
        TypeError: an argument has a wrong dtype.

    Examples:
        >>> logits = torch.tensor([3.0, 3.0]).view(1, 2, 1, 1)
        >>> stats = ops.pixel_stats(logits, (1, 2))
        >>> stats.label, stats.confidence, stats.entropy
        (tensor([[[0, 0]]], dtype=torch.uint8), tensor([[[0.5000, 0.5000]]]), tensor([[[0.6931, 0.6931]]]))

    Source: the pseudo-labels of U²PL and their entropy (Wang et al., CVPR 2022, Eq. 5).
    """
    _checks.check_logits(logits)
    height, width = _checks.check_size(size)
    return PixelStats(*_pixel_stats(_checks.dense(logits.detach()), height, width, align_corners))


@torch.library.custom_op("u2pl_fast::pixel_stats", mutates_args=())
def _pixel_stats(logits: Tensor, height: int, width: int, align_corners: bool) -> tuple[Tensor, Tensor, Tensor]:
    match _backend.resolve("pixel_stats", logits):
        case "cpu":
            return _backend.extension().pixel_stats(logits, height, width, align_corners)
        case "triton":
            return _backend.kernel("pixel_stats").pixel_stats(logits, height, width, align_corners)
        case _:
            label, confidence, entropy = reference.pixel_stats(logits, (height, width), align_corners=align_corners)
            return label, confidence, entropy


@_pixel_stats.register_fake
def _(logits: Tensor, height: int, width: int, align_corners: bool) -> tuple[Tensor, Tensor, Tensor]:
    shape = (logits.shape[0], height, width)
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    label = logits.new_empty(shape, dtype=reference.label_dtype(logits.shape[1]))
    return label, logits.new_empty(shape, dtype=wide), logits.new_empty(shape, dtype=wide)
