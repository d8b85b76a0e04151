"""Append normalized keys to one ring per class, in place, without a loop over the classes."""

import torch
from torch import Tensor

from .. import reference
from . import _backend
from ._contrast_checks import (
    check_features,
    check_mask,
    check_ring_values,
    check_rings,
    check_tensor,
    check_written,
    dense_features,
    num_pixels,
)


def ring_push(
    bank: Tensor,
    offsets: Tensor,
    pushed: Tensor,
    features: Tensor,
    mask: Tensor,
    *,
    gate: Tensor | None = None,
) -> None:
    """Append the pixels set in ``mask``, L2-normalized and in pixel order, to the ring of each class.

    Key number j of class c goes to slot offsets[c] + j mod K_c, with K_c = offsets[c+1] − offsets[c], so that the
    newest K_c keys stay. A pixel is read and normalized once (in float32, its norm clamped at 1e-12) and written to
    every class whose bit is set.

    Args:
        bank: (ΣK_c, D), float32, bfloat16 or float16, contiguous; written in place.
        offsets: int64 (C+1), the start of each ring, from 0 to ΣK_c.
        pushed: int64 (C), the keys of all calls, contiguous; updated in place. Class c holds min(pushed_c, K_c) keys.
        features: (B, D, h, w), contiguous or channels_last, or (R, D).
        mask: int32 (P, ⌈C/32⌉), from ``contrast_masks``, ``thin_mask`` or ``pack_mask``.
        gate: 0-d bool on the device; nothing changes if it is false.

    Raises:
        ValueError: an argument has a wrong shape or device. On the CPU also: a ring lies outside the bank.
        TypeError: an argument has a wrong dtype.

    Examples:
        >>> bank, offsets, pushed = torch.zeros(3, 2), torch.tensor([0, 3]), torch.tensor([0])
        >>> features = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
        >>> ops.ring_push(bank, offsets, pushed, features, torch.ones(2, 1, dtype=torch.int32))
        >>> bank.tolist(), pushed.tolist()
        ([[0.6..., 0.8...], [0.0, 1.0], [0.0, 0.0]], [2])

    Source: the category-wise memory bank of U²PL (Wang et al., CVPR 2022, Section 3.4).
    """
    check_features(features)
    device = features.device
    check_rings(bank, offsets, pushed, features.shape[1], device)
    check_written("bank", bank)
    check_written("pushed", pushed)
    check_mask(mask, pushed.numel(), num_pixels(features), device)
    if gate is not None:
        check_tensor("gate", gate, torch.bool, (), device)
    _ring_push(bank, offsets.contiguous(), pushed, dense_features(features.detach()), mask.contiguous(), gate)


@torch.library.custom_op("u2pl_fast::ring_push", mutates_args=("bank", "pushed"))
def _ring_push(
    bank: Tensor, offsets: Tensor, pushed: Tensor, features: Tensor, mask: Tensor, gate: Tensor | None
) -> None:
    check_ring_values(bank, offsets, pushed)
    backend = _backend.resolve("ring_push", bank if bank.dtype == torch.float64 else features)
    match backend:
        case "cpu" | "cuda":
            _backend.extension().ring_push(bank, offsets, pushed, features, mask, gate)
        case "triton":
            _backend.kernel("ring_push").ring_push(bank, offsets, pushed, features, mask, gate=gate)
        case _:
            reference.ring_push(bank, offsets, pushed, features, mask, gate=gate)


@_ring_push.register_fake
def _(bank: Tensor, offsets: Tensor, pushed: Tensor, features: Tensor, mask: Tensor, gate: Tensor | None) -> None:
    return None
