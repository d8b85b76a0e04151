"""Appends normalized keys to one ring per class, in place, on the device and without a loop over the classes."""

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
    """Append the pixels whose bit is set, L2-normalized and in pixel order, to each class's ring: the newest K_c stay.

    Key number j ever taken by class c goes to slot offsets[c] + j mod K_c, with K_c = offsets[c+1] − offsets[c]. A
    pixel is read and normalized once (norm clamped at 1e-12, in fp32) and written to every class whose bit it has.

    Args:
        bank: (ΣK_c, D), float32, bfloat16 or float16 (float64 on the reference), contiguous; written in place.
        offsets: int64 (C+1), where each ring starts, from 0 to ΣK_c.
        pushed: int64 (C), keys ever taken, contiguous; moved in place. A class holds min(pushed_c, K_c).
        features: (B, D, h, w), contiguous or channels_last, or (R, D); read in place.
        mask: int32 (P, ⌈C/32⌉) from ``contrast_masks``, ``thin_mask`` or ``pack_mask``.
        gate: 0-d bool on the device; nothing moves where it is false.

    Raises:
        ValueError, TypeError: a wrong shape, dtype or device, naming the argument; on the CPU also rings that do not
            lie within the bank.

    Source: the category-wise memory bank of U2PL (Wang et al., CVPR 2022, Section 3.4).
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
