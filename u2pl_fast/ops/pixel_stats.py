"""Label, confidence and entropy of every full-resolution pixel, from low-resolution logits in one pass."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import reference
from ..reference import PixelStats
from . import _backend, _checks


def pixel_stats(logits: Tensor, size: Sequence[int], *, align_corners: bool = False) -> PixelStats:
    """Statistics of softmax(upsample(logits)) at each pixel, with bilinear upsampling that is never stored.

    With l the logits upsampled as ``torch.nn.functional.interpolate(mode="bilinear")`` does, d = l − max l and
    S = Σ_c e^d:

        label = argmax l (ties to the lower class),  confidence = 1/S = max p,  entropy = log S − (Σ_c d·e^d)/S in nats.

    Args:
        logits: (B, C, h, w), float32, bfloat16, float16 or float64, contiguous or channels_last; read in place.
        size: (H, W), larger or smaller than (h, w).
        align_corners: as in ``interpolate``.

    Returns:
        ``PixelStats(label, confidence, entropy)``, each (B, H, W): uint8 (int16 when C > 255), and two of float32
        (float64 for float64 logits). No gradient.

    Raises:
        ValueError, TypeError: a wrong shape or dtype, naming the argument.

    Source: pseudo-labels and Eq. 5's entropy of U2PL (Wang et al., CVPR 2022).
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
