"""Exponential moving average of a teacher's tensors, gated on the device."""

from collections.abc import Sequence

import torch
from torch import Tensor

from . import _backend
from ._packing import Packing, by_dtype


@torch.no_grad()
def ema_update(
    teacher: Sequence[Tensor],
    student: Sequence[Tensor],
    momentum: float,
    *,
    gate: Tensor | None = None,
) -> None:
    """θ_t ← m·θ_t + (1−m)·θ_s in place, one multi-tensor operation a dtype; integer tensors are copied.

    On a GPU such an operation is a handful of launches, however many tensors there are. A gate there adds two ``cat``
    and a ``where``, and for as long as they take twice the memory of the student.

    Args:
        teacher, student: tensors of the same shapes and dtypes, in the same order (parameters, then buffers).
        momentum: m in [0, 1].
        gate: 0-d bool tensor on the device; where it is false nothing changes, even if the student holds NaN.

    Raises:
        ValueError: a momentum outside [0, 1], or tensors that differ in number, shape or dtype.

    Source: mean teacher (Tarvainen & Valpola, 2017), applied to buffers too.
    """
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum: expected a number in [0, 1], got {momentum}")
    if len(teacher) != len(student):
        raise ValueError(f"student: expected {len(teacher)} tensors, one for each of the teacher's, got {len(student)}")
    for i, (old, new) in enumerate(zip(teacher, student, strict=True)):
        if new.shape != old.shape or new.dtype != old.dtype:
            expected, got = (f"{x.dtype} {tuple(x.shape)}" for x in (old, new))
            raise ValueError(f"student: expected {expected} in place {i}, as the teacher has, got {got}")
    if gate is not None and _backend.readable(gate):
        if not gate:
            return
        gate = None
    if gate is not None and teacher:
        student = _selected(gate, student, teacher)
    for olds, news in by_dtype(teacher, student):
        if olds[0].is_floating_point():
            torch._foreach_lerp_(olds, news, 1 - momentum)  # pyright: ignore[reportPrivateImportUsage]
        else:
            torch._foreach_copy_(olds, news)  # pyright: ignore[reportPrivateImportUsage]


def _selected(gate: Tensor, new: Sequence[Tensor], old: Sequence[Tensor]) -> list[Tensor]:
    """``new`` where the gate is true, else ``old``; bits are selected, so that NaN is a value like any other."""
    packing = Packing(old)
    chosen = packing.pack(new)
    return packing.unpack(torch.where(gate, chosen, packing.pack(old), out=chosen))
