"""Check arguments that several ops share.

Shape, dtype and device are checked at once. Values of labels on CUDA are checked on request, since reading them waits.
"""

import os
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import reference

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)

_label_errors: dict[torch.device, Tensor] = {}


def check_logits(logits: Tensor) -> None:
    """Check that logits are (B, C, h, w), floating, with at least one class and one pixel."""
    if logits.dim() != 4 or 0 in logits.shape[1:]:
        raise ValueError(f"logits: expected (B, C, h, w) with C, h, w ≥ 1, got {tuple(logits.shape)}")
    if logits.dtype not in FLOATS:
        raise TypeError(f"logits: expected float32, bfloat16, float16 or float64, got {logits.dtype}")
    if logits.shape[1] > 2**15 - 1:
        raise ValueError(f"logits: expected at most 32767 classes, got {logits.shape[1]}")


def check_size(size: Sequence[int]) -> tuple[int, int]:
    """Check that ``size`` is (H, W), both at least 1, and return it."""
    try:
        height, width = size
    except (TypeError, ValueError):
        raise ValueError(f"size: expected (H, W), got {size!r}") from None
    if isinstance(height, float) or isinstance(width, float):
        raise TypeError(f"size: expected two integers, got {size!r}")
    if min(height, width) < 1:
        raise ValueError(f"size: expected (H, W) with H, W ≥ 1, got {tuple(size)}")
    return height, width


def check_map(name: str, x: Tensor, logits: Tensor, shape: Sequence[int] | None = None) -> None:
    """Check that ``x`` is (B, H, W), of the logits' batch and device, without a gradient."""
    if x.dim() != 3 or x.shape[0] != logits.shape[0] or 0 in x.shape[1:]:
        raise ValueError(f"{name}: expected (B, H, W) with B = {logits.shape[0]}, got {tuple(x.shape)}")
    if shape is not None and x.shape != shape:
        raise ValueError(f"{name}: expected the target's shape {tuple(shape)}, got {tuple(x.shape)}")
    check_constant(name, x, logits)


def check_target(target: Tensor, logits: Tensor, ignore_index: int) -> None:
    """Check for integer labels (B, H, W), and for an ``ignore_index`` that is not a class."""
    check_map("target", target, logits)
    if target.dtype not in INTEGERS:
        raise TypeError(f"target: expected an integer dtype, got {target.dtype}")
    reference.check_ignore_index(ignore_index, logits.shape[1])


def check_constant(name: str, x: Tensor, logits: Tensor) -> None:
    """Check for real numbers on the logits' device, without a gradient."""
    if x.is_complex():
        raise TypeError(f"{name}: expected real numbers, got {x.dtype}")
    if x.device != logits.device:
        raise ValueError(f"{name}: expected a tensor on {logits.device} like logits, got one on {x.device}")
    if x.requires_grad:
        raise ValueError(f"{name}: is not differentiable in this op; pass {name}.detach()")


def dense(x: Tensor) -> Tensor:
    """Return ``x`` if it is contiguous or channels_last, which every backend reads in place; else a copy."""
    if x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last):
        return x
    return x.contiguous()


def label_errors(device: torch.device | str) -> Tensor:
    """Return the counter of labels on ``device`` that were neither a class nor ``ignore_index``.

    Args:
        device: the device of the labels.

    Returns:
        int32 (1), on that device. Reading it waits for the device.

    Examples:
        >>> ops.label_errors("cpu")
        tensor([0], dtype=torch.int32)
    """
    device = torch.empty(0, device=device).device
    if device not in _label_errors:
        _label_errors[device] = torch.zeros(1, dtype=torch.int32, device=device)
    return _label_errors[device]


def check_label_errors(device: torch.device | str) -> None:
    """Raise if an op on ``device`` met a label that was neither a class nor ``ignore_index``, and reset the counter.

    On CUDA such labels count as ignored at first. Reading the counter waits for the device, so call this where you log
    values.

    Args:
        device: the device of the labels.

    Raises:
        ValueError: there were such labels since the last call.

    Examples:
        >>> ops.check_label_errors("cpu")
    """
    counter = label_errors(device)
    count = int(counter)
    counter.zero_()
    if count:
        raise ValueError(f"target: {count} labels are neither in 0..C-1 nor ignore_index; correct them")


def _is_bad(target: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Return where a label is neither a class nor ``ignore_index``, both of which may exceed the labels' dtype."""
    target = target.long()
    return ((target < 0) | (target >= num_classes)) & (target != ignore_index)


def count_label_errors(target: Tensor, num_classes: int, ignore_index: int) -> None:
    """Add the labels of ``target`` that are neither a class nor ``ignore_index`` to the device's counter."""
    label_errors(target.device).add_(_is_bad(target, num_classes, ignore_index).sum())


def label_errors_now(target: Tensor, num_classes: int, ignore_index: int, name: str = "target") -> None:
    """Raise at once for a label that is neither a class nor ``ignore_index``, on the CPU or with ``U2PL_FAST_DEBUG=1``.

    Call it after a kernel that counts such labels.
    """
    if target.device.type != "cpu" and os.environ.get("U2PL_FAST_DEBUG", "0") != "1":
        return
    counter = label_errors(target.device)
    if int(counter):
        counter.zero_()
        bad = target[_is_bad(target, num_classes, ignore_index)]
        raise ValueError(
            f"{name}: label {int(bad[0])} is neither in 0..{num_classes - 1} nor ignore_index={ignore_index}"
        )
