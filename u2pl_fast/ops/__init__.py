"""Provide fused operations for segmentation, each usable alone in any PyTorch project.

Each op has one file with its docstring, argument checks, registration with torch and gradient. Choose an implementation
with ``use_backend`` or the environment variable ``U2PL_FAST_BACKEND``; ``info`` returns the one that each op uses.

The examples assume ``import torch`` and ``from u2pl_fast import ops``.
"""

from ..reference import ContrastiveLoss, ContrastMasks, PixelStats, pack_mask, unpack_mask
from ._backend import info, use_backend
from ._checks import check_label_errors, label_errors
from .class_sample import class_sample
from .class_sum import class_sum
from .contrast_masks import contrast_masks
from .contrastive_loss import contrastive_loss, contrastive_loss_from_masks
from .draws import ContrastiveDraws, contrastive_draws, draw32
from .ema_update import ema_update
from .gather_pixels import gather_pixels
from .info_nce import NEGATIVES, info_nce
from .masked_quantile import masked_quantile
from .ohem_mask import ohem_mask
from .pixel_stats import pixel_stats
from .ring_push import ring_push
from .thin_mask import thin_mask
from .upsampled_cross_entropy import upsampled_cross_entropy

__all__ = [
    "ContrastMasks",
    "ContrastiveDraws",
    "ContrastiveLoss",
    "NEGATIVES",
    "PixelStats",
    "check_label_errors",
    "class_sample",
    "class_sum",
    "contrast_masks",
    "contrastive_draws",
    "contrastive_loss",
    "contrastive_loss_from_masks",
    "draw32",
    "ema_update",
    "gather_pixels",
    "info",
    "info_nce",
    "label_errors",
    "masked_quantile",
    "ohem_mask",
    "pack_mask",
    "pixel_stats",
    "ring_push",
    "thin_mask",
    "unpack_mask",
    "upsampled_cross_entropy",
    "use_backend",
]
