"""Update a teacher's tensors as an exponential moving average, gated on the device."""

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
    """Update θ_t ← m·θ_t + (1−m)·θ_s in place; copy integer tensors.

    All tensors of a dtype share one multi-tensor operation. On a GPU, a gate adds two ``cat`` and one ``where``, and
    temporarily takes twice the student's memory.

    Args:
        teacher: tensors to update: parameters, then buffers.
        student: tensors of the same shapes and dtypes, in the same order.
        momentum: m in [0, 1].
        gate: 0-d bool on the device; nothing changes if it is false, even if the student holds NaN.

    Raises:
        ValueError: the momentum is outside [0, 1], or the tensors differ in number, shape or dtype.

    Examples:
        >>> teacher, student = [torch.zeros(3)], [torch.ones(3)]
        >>> ops.ema_update(teacher, student, momentum=0.75)
        >>> teacher[0]
        tensor([0.2500, 0.2500, 0.2500])

    Source: Mean Teacher (Tarvainen & Valpola, NeurIPS 2017), applied to buffers too.
    """
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum: expected a number in [0, 1], got {momentum}")
    if len(teacher) != len(student):
        raise ValueError(f"student: expected {len(teacher)} tensors like the teacher, got {len(student)}")
    for i, (old, new) in enumerate(zip(teacher, student, strict=True)):
        if new.shape != old.shape or new.dtype != old.dtype:
            expected, got = (f"{x.dtype} {tuple(x.shape)}" for x in (old, new))
            raise ValueError(f"student: expected {expected} at index {i} like the teacher, got {got}")
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
    """Return ``new`` if the gate is true, else ``old``; selecting bits keeps NaN in ``new`` out of ``old``."""
    packing = Packing(old)
    chosen = packing.pack(new)
    return packing.unpack(torch.where(gate, chosen, packing.pack(old), out=chosen))
