"""Exponential moving average of a teacher's tensors, gated on the device."""

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def ema_update(
    teacher: Sequence[Tensor],
    student: Sequence[Tensor],
    momentum: float,
    *,
    gate: Tensor | None = None,
) -> None:
    """θ_t ← m·θ_t + (1−m)·θ_s in place, for all tensors in one multi-tensor launch; integer tensors are copied.

    Args:
        teacher, student: tensors of the same shapes and dtypes, in the same order (parameters, then buffers).
        momentum: m in [0, 1].
        gate: 0-d bool tensor on the device; where it is false nothing changes, even if the student holds NaN.

    Source: mean teacher (Tarvainen & Valpola, 2017), applied to buffers too.
    """
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum: expected a number in [0, 1], got {momentum}")
    if len(teacher) != len(student):
        raise ValueError(f"student: expected {len(teacher)} tensors, one for each of the teacher's, got {len(student)}")
    if gate is not None:
        student = [torch.where(gate, new, old) for old, new in zip(teacher, student, strict=True)]
    pairs = list(zip(teacher, student, strict=True))
    averaged = [pair for pair in pairs if pair[0].is_floating_point()]
    copied = [pair for pair in pairs if not pair[0].is_floating_point()]
    for update, group in ((_lerp, averaged), (_copy, copied)):
        if group:
            update([old for old, _ in group], [new for _, new in group], 1 - momentum)


def _lerp(old: list[Tensor], new: list[Tensor], weight: float) -> None:
    torch._foreach_lerp_(old, new, weight)


def _copy(old: list[Tensor], new: list[Tensor], _: float) -> None:
    torch._foreach_copy_(old, new)
