"""Fused operations for semi-supervised segmentation, each usable alone in any PyTorch project.

One file an op: docstring, argument checks, registration with torch, gradient. ``use_backend`` and the environment
variable ``U2PL_FAST_BACKEND`` choose between implementations.
"""

from ..reference import PixelStats
from ._backend import use_backend
from ._checks import check_label_errors, label_errors
from .ema_update import ema_update
from .masked_quantile import masked_quantile
from .ohem_mask import ohem_mask
from .pixel_stats import pixel_stats
from .upsampled_cross_entropy import upsampled_cross_entropy

__all__ = [
    "PixelStats",
    "check_label_errors",
    "ema_update",
    "label_errors",
    "masked_quantile",
    "ohem_mask",
    "pixel_stats",
    "upsampled_cross_entropy",
    "use_backend",
]
