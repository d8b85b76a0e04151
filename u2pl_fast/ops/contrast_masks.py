"""Find the anchors and negatives of every class in one pass over the logits, without a sort."""

import math

import torch
from torch import Tensor

from .. import reference
from ..reference import ContrastMasks
from . import _backend, _checks
from ._contrast_checks import check_tensor


def contrast_masks(
    logits: Tensor,
    label: Tensor,
    reliable: Tensor,
    unreliable: Tensor,
    *,
    num_labeled: int,
    low_rank: int,
    high_rank: int,
    positive_threshold: float,
    ignore_index: int = 255,
) -> ContrastMasks:
    """Find the anchors and negatives of every class among the P = B·h·w pixels of a batch.

    With p = softmax(l), y the label and O(c) the rank of class c by descending logit (0 = most likely; of equal classes
    the lower comes first):

        anchor of c:    y = c and p(c) > δ_p; a pixel of an unlabeled image must also be reliable
        negative of c:  labeled image: y ≠ c, y not ignored and O(c) < r_l
                        unlabeled image: unreliable and r_l ≤ O(c) < r_h

    A pixel is an anchor of at most one class and can be a negative of several. The result has no gradient.

    Args:
        logits: (B, C, h, w), labeled images first; contiguous or channels_last; float32, bfloat16, float16 or float64.
        label: (B, h, w), any integer dtype: labels, then pseudo-labels.
        reliable: bool (B, h, w); not read for the first ``num_labeled`` images.
        unreliable: bool (B, h, w); not read for the first ``num_labeled`` images.
        num_labeled: the number of labeled images.
        low_rank: r_l, with 0 ≤ r_l ≤ r_h.
        high_rank: r_h.
        positive_threshold: δ_p.
        ignore_index: the label of ignored pixels; must not be a class.

    Returns:
        ``ContrastMasks(mask, anchor_label, keys, anchors)``. ``unpack_mask`` converts the mask to booleans.

    Raises:
        ValueError: an argument has a wrong shape, device or rank, or a label is neither a class nor ``ignore_index``.
            On CUDA such a label counts as ignored, and ``check_label_errors`` raises.
        TypeError: an argument has a wrong dtype.

    Examples:
        >>> logits, label = torch.randn(2, 5, 4, 4), torch.randint(0, 5, (2, 4, 4))
        >>> reliable = torch.rand(2, 4, 4) < 0.8
        >>> settings = dict(num_labeled=1, low_rank=3, high_rank=5, positive_threshold=0.3)
        >>> masks = ops.contrast_masks(logits, label, reliable, ~reliable, **settings)
        >>> masks.mask.shape, masks.anchor_label.shape, masks.anchors.shape
        (torch.Size([32, 1]), torch.Size([32]), torch.Size([5]))

    Source: Wang et al., CVPR 2022, Section 3.3: anchors (Eq. 6) and negatives (Eqs. 9-13).
    """
    _checks.check_logits(logits)
    shape = (logits.shape[0], *logits.shape[2:])
    if label.dtype not in _checks.INTEGERS:
        raise TypeError(f"label: expected an integer dtype, got {label.dtype}")
    check_tensor("label", label, label.dtype, shape, logits.device)
    check_tensor("reliable", reliable, torch.bool, shape, logits.device)
    check_tensor("unreliable", unreliable, torch.bool, shape, logits.device)
    if not 0 <= num_labeled <= logits.shape[0]:
        raise ValueError(f"num_labeled: expected 0..{logits.shape[0]}, got {num_labeled}")
    if not 0 <= low_rank <= high_rank:
        raise ValueError(f"high_rank: expected at least low_rank={low_rank} ≥ 0, got {high_rank}")
    if math.isnan(positive_threshold):
        raise ValueError("positive_threshold: expected a number, got nan")
    reference.check_ignore_index(ignore_index, logits.shape[1])
    maps = (label.contiguous(), reliable.contiguous(), unreliable.contiguous())
    settings = (num_labeled, low_rank, high_rank, float(positive_threshold), ignore_index)
    mask, anchor_label, counts = _contrast_masks(_checks.dense(logits.detach()), *maps, *settings)
    return ContrastMasks(mask, anchor_label, *counts.unbind())


@torch.library.custom_op("u2pl_fast::contrast_masks", mutates_args=())
def _contrast_masks(
    logits: Tensor,
    label: Tensor,
    reliable: Tensor,
    unreliable: Tensor,
    num_labeled: int,
    low_rank: int,
    high_rank: int,
    positive_threshold: float,
    ignore_index: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return mask, anchor label, and keys and anchors as one (2, C)."""
    maps = (label, reliable, unreliable)
    settings = {
        "num_labeled": num_labeled,
        "low_rank": low_rank,
        "high_rank": high_rank,
        "positive_threshold": positive_threshold,
        "ignore_index": ignore_index,
    }
    match _backend.resolve("contrast_masks", logits):
        case "cpu":
            mask, anchor_label, *counts = _backend.extension().contrast_masks(logits, *maps, *settings.values())
            return mask, anchor_label, torch.stack(counts)
        case "triton":
            errors = _checks.label_errors(logits.device)
            result = _backend.kernel("contrast_masks").contrast_masks(logits, *maps, errors, **settings)
            _checks.label_errors_now(label, logits.shape[1], ignore_index, "label")
            return result
        case _:
            _checks.count_label_errors(label, logits.shape[1], ignore_index)
            _checks.label_errors_now(label, logits.shape[1], ignore_index, "label")
            mask, anchor_label, *counts = reference.contrast_masks(logits, *maps, **settings)
            return mask, anchor_label, torch.stack(counts)


@_contrast_masks.register_fake
def _(
    logits: Tensor,
    label: Tensor,
    reliable: Tensor,
    unreliable: Tensor,
    num_labeled: int,
    low_rank: int,
    high_rank: int,
    positive_threshold: float,
    ignore_index: int,
) -> tuple[Tensor, Tensor, Tensor]:
    num_classes, pixels = logits.shape[1], label.numel()
    mask = logits.new_empty((pixels, reference.mask_words(num_classes)), dtype=torch.int32)
    counts = logits.new_empty((2, num_classes), dtype=torch.int64)
    return mask, logits.new_empty((pixels,), dtype=torch.int16), counts
