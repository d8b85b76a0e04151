"""Online hard example mining: which labeled pixels the network is least sure of."""

import math

import torch
from torch import Tensor

from .. import reference
from . import _backend, _checks


def ohem_mask(
    logits: Tensor,
    target: Tensor,
    *,
    threshold: float,
    min_kept: int,
    ignore_index: int = 255,
    align_corners: bool = False,
) -> Tensor:
    """Keep the labeled pixels with p(target) ≤ max(threshold, the k-th smallest p(target)), k = min(min_kept, pixels).

    Two defaults differ from torch's: ``ignore_index`` is 255, not −100, and upsampling is bilinear, not nearest.
    p = softmax of the logits upsampled to the target's size, which are never stored. The k-th smallest is exact and
    stays on the device.

    Args:
        logits: (B, C, h, w), float32, bfloat16, float16 or float64, contiguous or channels_last; read in place.
        target: (B, H, W), any integer dtype.
        threshold: keep every pixel whose p(target) is at most this.
        min_kept: keep at least this many of the hardest pixels of the batch (all labeled ones if there are fewer).
        ignore_index: the label of pixels left out; not one of 0..C-1.
        align_corners: as in ``torch.nn.functional.interpolate``.

    Returns:
        bool (B, H, W), for ``pixel_weight`` of ``upsampled_cross_entropy``.

    Raises:
        ValueError, TypeError: as ``upsampled_cross_entropy`` does.

    Source: Shrivastava et al., "Training Region-based Object Detectors with Online Hard Example Mining", CVPR 2016, in
    the form that segmentation code gives it.
    """
    _checks.check_logits(logits)
    _checks.check_target(target, logits, ignore_index)
    if min_kept < 0:
        raise ValueError(f"min_kept: expected a number ≥ 0, got {min_kept}")
    if math.isnan(threshold):
        raise ValueError("threshold: expected a number, got nan")
    logits = _checks.dense(logits.detach())
    return _ohem_mask(logits, target.contiguous(), float(threshold), min_kept, ignore_index, align_corners)


@torch.library.custom_op("u2pl_fast::ohem_mask", mutates_args=())
def _ohem_mask(
    logits: Tensor, target: Tensor, threshold: float, min_kept: int, ignore_index: int, align_corners: bool
) -> Tensor:
    arguments = (threshold, min_kept, ignore_index, align_corners)
    match _backend.resolve("ohem_mask", logits):
        case "cpu":
            return _backend.extension().ohem_mask(logits, target, *arguments)
        case "triton":
            errors = _checks.label_errors(logits.device)
            keep = _backend.kernel("ohem_mask").ohem_mask(logits, target, errors, *arguments)
        case _:
            keep = reference.ohem_mask(
                logits,
                target,
                threshold=threshold,
                min_kept=min_kept,
                ignore_index=ignore_index,
                align_corners=align_corners,
            )
            _checks.count_label_errors(target, logits.shape[1], ignore_index)
    _checks.label_errors_now(target, logits.shape[1], ignore_index)
    return keep


@_ohem_mask.register_fake
def _(
    logits: Tensor, target: Tensor, threshold: float, min_kept: int, ignore_index: int, align_corners: bool
) -> Tensor:
    return torch.empty_like(target, dtype=torch.bool)
