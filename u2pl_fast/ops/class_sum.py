"""Sum features over the pixels of each class, reading either memory layout in place."""

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
    """Sum features over the pixels of each class: Σ z.

    Divide by the number of pixels to get the class center z_c⁺. The sums are float32 in a fixed order, so every run
    gives the same bits. The result has no gradient: centers are constants of the loss.

    Args:
        features: (B, D, h, w), contiguous or channels_last, or (R, D); float32, bfloat16, float16 or float64.
        anchor_label: int16 (P) with P = B·h·w or R: the class of each pixel, or −1 for none.
        num_classes: C.

    Returns:
        float32 (C, D), or float64 for float64 features; 0 for a class without pixels.

    Raises:
        ValueError: an argument has a wrong shape or device. On the CPU also: a class is not in −1..C-1.
        TypeError: an argument has a wrong dtype.

    Examples:
        >>> features = torch.tensor([[1.0, 0.0], [2.0, 1.0], [5.0, 5.0]])
        >>> ops.class_sum(features, torch.tensor([1, 1, -1], dtype=torch.int16), 2)
        tensor([[0., 0.],
                [3., 1.]])

    Source: the positive sample of U²PL (Wang et al., CVPR 2022, Eq. 7).
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
