"""Draw pixels of each class, uniformly with replacement, without a list per class."""

import torch
from torch import Tensor

from .. import reference
from . import _backend
from ._contrast_checks import check_anchor_label, check_draws, check_num_classes, check_tensor, check_values


def class_sample(anchor_label: Tensor, num_classes: int, draws: Tensor) -> Tensor:
    """Draw M pixels of each class, uniformly with replacement.

    Draw d selects pixel number (d·n) >> 32 of the class's n pixels, in order, or −1 if the class has none. Equal draws
    give equal pixels on every backend.

    Args:
        anchor_label: int16 (P), the class of each pixel, or −1.
        num_classes: C.
        draws: int64 (C, M), uniform in [0, 2³²), for example from ``draw32``.

    Returns:
        int64 (C, M), pixels in 0..P-1, or −1.

    Raises:
        ValueError: an argument has a wrong shape or device. On the CPU also: a class is not in −1..C-1, or a draw is
            outside [0, 2³²).
        TypeError: an argument has a wrong dtype.

    Examples:
        >>> anchor_label = torch.tensor([0, 2, 0, -1], dtype=torch.int16)
        >>> draws = torch.tensor([[0, 2**31]]).expand(3, 2)
        >>> ops.class_sample(anchor_label, 3, draws)
        tensor([[ 0,  2],
                [-1, -1],
                [ 1,  1]])

    Source: the anchor sampling of U²PL (Wang et al., CVPR 2022), here as one stable counting sort.
    """
    check_num_classes(num_classes)
    check_anchor_label(anchor_label)
    check_draws_of(anchor_label, num_classes, draws)
    return _class_sample(anchor_label.contiguous(), num_classes, draws.contiguous())


def check_draws_of(anchor_label: Tensor, num_classes: int, draws: Tensor) -> None:
    """Check that ``draws`` is int64 (C, M) on the device of the pixels."""
    if draws.dim() != 2:
        raise ValueError(f"draws: expected (C, M), got {tuple(draws.shape)}")
    check_tensor("draws", draws, torch.int64, (num_classes, draws.shape[1]), anchor_label.device)


@torch.library.custom_op("u2pl_fast::class_sample", mutates_args=())
def _class_sample(anchor_label: Tensor, num_classes: int, draws: Tensor) -> Tensor:
    check_values("anchor_label", anchor_label, -1, num_classes)
    check_draws("draws", draws)
    match _backend.resolve("class_sample", anchor_label):
        case "cpu":
            return _backend.extension().class_sample(anchor_label, num_classes, draws)
        case "triton":
            return _backend.kernel("class_sample").class_sample(anchor_label, num_classes, draws)
        case _:
            return reference.class_sample(anchor_label, num_classes, draws)


@_class_sample.register_fake
def _(anchor_label: Tensor, num_classes: int, draws: Tensor) -> Tensor:
    return torch.empty_like(draws)
