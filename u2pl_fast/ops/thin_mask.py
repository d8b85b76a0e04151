"""Reduce the negatives of each class to a fixed number per step, evenly and in order, with integers only."""

import torch
from torch import Tensor

from .. import reference
from . import _backend
from ._contrast_checks import check_draws, check_mask, check_num_classes, check_tensor, check_values


def thin_mask(mask: Tensor, max_keys: Tensor, draw: Tensor) -> Tensor:
    """Keep k = min(max_keys_c, n) of the n keys of each class, evenly spaced and in order, from a random offset.

    The key of rank r stays if ⌊((r+1)k + v)/n⌋ > ⌊(rk + v)/n⌋, with v = (draw_c·n) >> 32. Exactly k keys stay, at most
    ⌈n/k⌉ apart, and each key has the same chance over all draws.

    Args:
        mask: int32 (P, ⌈C/32⌉), from ``contrast_masks`` or ``pack_mask``.
        max_keys: int64 (C); 0 keeps all.
        draw: int64 (C), uniform in [0, 2³²).

    Returns:
        int32, the shape of ``mask``.

    Raises:
        ValueError: an argument has a wrong shape or device. On the CPU also: a cap is below 0, or a draw is outside
            [0, 2³²).
        TypeError: an argument has a wrong dtype.

    Examples:
        >>> mask = torch.ones(6, 1, dtype=torch.int32)
        >>> ops.thin_mask(mask, torch.tensor([2]), torch.tensor([0])).flatten()
        tensor([0, 0, 1, 0, 0, 1], dtype=torch.int32)

    Source: systematic sampling (Madow & Madow, 1944). It lets the bank of U²PL (Wang et al., CVPR 2022) span many
    steps.
    """
    check_num_classes(max_keys.numel(), "max_keys")
    check_tensor("max_keys", max_keys, torch.int64, (max_keys.numel(),), mask.device)
    check_tensor("draw", draw, torch.int64, max_keys.shape, mask.device)
    check_mask(mask, max_keys.numel())
    return _thin_mask(mask.contiguous(), max_keys.contiguous(), draw.contiguous())


@torch.library.custom_op("u2pl_fast::thin_mask", mutates_args=())
def _thin_mask(mask: Tensor, max_keys: Tensor, draw: Tensor) -> Tensor:
    check_values("max_keys", max_keys, 0, 2**63)
    check_draws("draw", draw)
    match _backend.resolve("thin_mask", mask):
        case "cpu":
            return _backend.extension().thin_mask(mask, max_keys, draw)
        case "triton":
            return _backend.kernel("thin_mask").thin_mask(mask, max_keys, draw)
        case _:
            return reference.thin_mask(mask, max_keys, draw)


@_thin_mask.register_fake
def _(mask: Tensor, max_keys: Tensor, draw: Tensor) -> Tensor:
    return torch.empty_like(mask)
