"""Thins the negatives of each class to a number per step, evenly and in order, with integers alone."""

import torch
from torch import Tensor

from .. import reference
from . import _backend
from ._contrast_checks import check_draws, check_mask, check_num_classes, check_tensor, check_values


def thin_mask(mask: Tensor, max_keys: Tensor, draw: Tensor) -> Tensor:
    """Keep k = min(max_keys_c, n) of the n keys of each class: a comb over the keys in order, at a random offset.

    The key of rank r stays iff ⌊((r+1)k + v)/n⌋ > ⌊(rk + v)/n⌋, with v = (draw_c·n) >> 32. Exactly k stay, at most
    ⌈n/k⌉ apart, and over all draws each key has the same chance.

    Args:
        mask: int32 (P, ⌈C/32⌉) from ``contrast_masks`` or ``pack_mask``.
        max_keys: int64 (C); 0 keeps all.
        draw: int64 (C), uniform in [0, 2³²).

    Returns:
        int32, the mask's shape.

    Raises:
        ValueError, TypeError: a wrong shape, dtype or device, naming the argument; on the CPU also a cap below 0 and a
            draw outside [0, 2³²).

    Source: systematic sampling (Madow & Madow, 1944), so that a bank of U2PL (Wang et al., CVPR 2022) spans many steps.
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
