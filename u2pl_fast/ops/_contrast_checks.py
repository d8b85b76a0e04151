"""Check arguments that the contrastive ops share; each error names the argument and the expected value."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from . import _checks

MAX_CLASSES = 2**15 - 1  # anchor maps are int16


def check_tensor(name: str, x: Tensor, dtype: torch.dtype, shape: Sequence[int], device: torch.device) -> None:
    """Check for exactly this dtype, shape and device."""
    if x.dtype != dtype:
        raise TypeError(f"{name}: expected {dtype}, got {x.dtype}")
    if x.shape != tuple(shape):
        raise ValueError(f"{name}: expected {tuple(shape)}, got {tuple(x.shape)}")
    if x.device != device:
        raise ValueError(f"{name}: expected a tensor on {device}, got one on {x.device}")


def check_features(features: Tensor, name: str = "features") -> None:
    """Check for (B, D, h, w) or (R, D), floating, D ≥ 1."""
    if features.dim() not in (2, 4) or features.shape[1] == 0:
        raise ValueError(f"{name}: expected (B, D, h, w) or (R, D) with D ≥ 1, got {tuple(features.shape)}")
    if features.dtype not in _checks.FLOATS:
        raise TypeError(f"{name}: expected float32, bfloat16, float16 or float64, got {features.dtype}")


def num_pixels(features: Tensor) -> int:
    """Return P = B·h·w of feature maps, or R of rows."""
    return features.shape[0] if features.dim() == 2 else features.shape[0] * features.shape[2] * features.shape[3]


def check_num_classes(num_classes: int, name: str = "num_classes") -> None:
    """Check that the number of classes fits the int16 of anchor maps."""
    if not 1 <= num_classes <= MAX_CLASSES:
        raise ValueError(f"{name}: expected 1..{MAX_CLASSES} classes, got {num_classes}")


def check_anchor_label(anchor_label: Tensor, pixels: int | None = None, device: torch.device | None = None) -> None:
    """Check for int16 (P)."""
    if anchor_label.dim() != 1:
        raise ValueError(f"anchor_label: expected (P,), got {tuple(anchor_label.shape)}")
    shape = anchor_label.shape if pixels is None else (pixels,)
    check_tensor("anchor_label", anchor_label, torch.int16, shape, anchor_label.device if device is None else device)


def check_mask(mask: Tensor, num_classes: int, pixels: int | None = None, device: torch.device | None = None) -> None:
    """Check for int32 (P, ⌈C/32⌉)."""
    if mask.dim() != 2:
        raise ValueError(f"mask: expected (P, ⌈C/32⌉), got {tuple(mask.shape)}")
    rows = mask.shape[0] if pixels is None else pixels
    shape = (rows, -(-num_classes // 32))
    check_tensor("mask", mask, torch.int32, shape, mask.device if device is None else device)


def check_rings(bank: Tensor, offsets: Tensor, pushed: Tensor, dim: int, device: torch.device) -> None:
    """Check for bank (slots, D) floating, offsets int64 (C+1) and pushed int64 (C), all on one device."""
    if pushed.dim() != 1 or pushed.numel() == 0:
        raise ValueError(f"pushed: expected (C,) with C ≥ 1, got {tuple(pushed.shape)}")
    check_tensor("pushed", pushed, torch.int64, pushed.shape, device)
    check_tensor("offsets", offsets, torch.int64, (pushed.numel() + 1,), device)
    if bank.dim() != 2 or bank.shape[1] != dim:
        raise ValueError(f"bank: expected (slots, D) with D = {dim}, got {tuple(bank.shape)}")
    if bank.dtype not in _checks.FLOATS:
        raise TypeError(f"bank: expected float32, bfloat16, float16 or float64, got {bank.dtype}")
    if bank.device != device:
        raise ValueError(f"bank: expected a tensor on {device}, got one on {bank.device}")


def check_written(name: str, x: Tensor) -> None:
    """Check that a tensor written in place is contiguous, so that no two elements share memory."""
    if not x.is_contiguous():
        raise ValueError(f"{name}: expected a contiguous tensor, since the op writes to it; pass {name}.contiguous()")


def check_values(name: str, x: Tensor, low: int, high: int) -> None:
    """Check on the CPU, where reading does not wait, that every element is in low..high − 1."""
    if x.device.type != "cpu" or x.numel() == 0:
        return
    least, most = (int(bound) for bound in torch.aminmax(x))
    if least < low or most >= high:
        raise ValueError(f"{name}: {least if least < low else most} is not in {low}..{high - 1}")


def check_draws(name: str, draws: Tensor) -> None:
    """Check on the CPU that draws are in [0, 2³²); others would select an element past the end."""
    check_values(name, draws, 0, 1 << 32)


def check_ring_values(bank: Tensor, offsets: Tensor, pushed: Tensor) -> None:
    """Check on the CPU that the rings lie within the bank, one after another."""
    if offsets.device.type != "cpu":
        return
    starts = offsets.tolist()
    if starts[0] < 0 or starts[-1] > bank.shape[0] or any(start > end for start, end in pairwise(starts)):
        raise ValueError(f"offsets: expected values that rise from 0 to the bank's {bank.shape[0]} slots, got {starts}")
    check_values("pushed", pushed, 0, 2**63)


def dense_features(features: Tensor) -> Tensor:
    """Return ``features`` if every backend reads its layout in place (contiguous or channels_last), else a copy."""
    return _checks.dense(features) if features.dim() == 4 else features.contiguous()
