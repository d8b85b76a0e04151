"""Sums features over the pixels of each class, read in place."""

import torch
from torch import Tensor

from .. import reference
from . import _backend
from ._contrast_checks import (
    check_anchor_label,
    check_features,
    check_num_classes,
    check_values,
    dense_features,
    num_pixels,
)


def class_sum(features: Tensor, anchor_label: Tensor, num_classes: int) -> Tensor:
    """Σ z over the pixels of each class; divided by the count it is the class center z_c⁺.

    Args:
        features: (B, D, h, w), contiguous or channels_last, or (R, D); float32, bfloat16, float16 or float64.
        anchor_label: int16 (P), P = B·h·w or R: the class of each pixel, or −1 for none.
        num_classes: C.

    Returns:
        float32 (C, D) (float64 for float64 features), 0 for a class without a pixel; summed in fp32 in a fixed order.
        No gradient: centers are constants of the loss.

    Raises:
        ValueError, TypeError: a wrong shape, dtype or device, naming the argument; on the CPU also a class
            that is neither −1 nor in 0..C-1.

    Source: the positive sample of U2PL (Wang et al., CVPR 2022, Eq. 7).
    """
    check_num_classes(num_classes)
    check_features(features)
    check_anchor_label(anchor_label, num_pixels(features), features.device)
    return _class_sum(dense_features(features.detach()), anchor_label.contiguous(), num_classes)


@torch.library.custom_op("u2pl_fast::class_sum", mutates_args=())
def _class_sum(features: Tensor, anchor_label: Tensor, num_classes: int) -> Tensor:
    check_values("anchor_label", anchor_label, -1, num_classes)
    match _backend.resolve("class_sum", features):
        case "cpu":
            return _backend.extension().class_sum(features, anchor_label, num_classes)
        case "triton":
            return _backend.kernel("class_sum").class_sum(features, anchor_label, num_classes)
        case _:
            return reference.class_sum(features, anchor_label, num_classes).clone()  # an op's output is no view


@_class_sum.register_fake
def _(features: Tensor, anchor_label: Tensor, num_classes: int) -> Tensor:
    dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
    return features.new_empty((num_classes, features.shape[1]), dtype=dtype)
