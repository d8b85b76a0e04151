"""Select hard examples online: the labeled pixels with the lowest probability of their label."""

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
    """Keep the labeled pixels whose label has a low probability.

    Keep p(target) ≤ max(threshold, the k-th smallest p(target)) with k = min(min_kept, labeled pixels).

    p is the softmax of the logits, upsampled to the size of the target; the upsampled logits are never stored. The k-th
    smallest is exact and stays on the device. Two defaults differ from torch: ``ignore_index`` is 255, not −100, and
    upsampling is bilinear, not nearest.

    Args:
        logits: (B, C, h, w), contiguous or channels_last; float32, bfloat16, float16 or float64.
        target: (B, H, W), any integer dtype.
        threshold: keep every pixel with p(target) at most this.
        min_kept: keep at least this number of the hardest pixels of the batch, or all if the batch has fewer.
        ignore_index: the label of ignored pixels; must not be a class.
        align_corners: as in ``torch.nn.functional.interpolate``.

    Returns:
        bool (B, H, W), for ``pixel_weight`` of ``upsampled_cross_entropy``.

    Raises:
        ValueError: an argument has a wrong shape, device or value, or a label is neither a class nor ``ignore_index``.
            On CUDA such a label counts as ignored, and ``check_label_errors`` raises.
        TypeError: an argument has a wrong dtype.

    Examples:
        >>> logits = torch.tensor([[2.0, 0.0], [-2.0, 0.0]]).view(1, 2, 1, 2)
        >>> ops.ohem_mask(logits, torch.tensor([[[0, 0]]]), threshold=0.7, min_kept=1)
        tensor([[[False,  True]]])

    Source: Shrivastava et al., "Training Region-based Object Detectors with Online Hard Example Mining", CVPR 2016, as
    segmentation code applies it to pixels.
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
