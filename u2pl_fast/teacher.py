"""The EMA teacher: a copy of the student that follows it slowly and is never trained itself."""

import copy
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from .distributed import Group
from .norm_statistics import NormStatistics
from .ops.ema_update import ema_update
from .reference import ema_momentum

MEASURED_BEFORE = 9  # updates for which the statistics that a teacher starts with count: one batch is a poor estimate


class EMATeacher:
    """Keeps ``module``, an evaluation-mode copy of a student, as the moving average of its parameters and buffers.

    Momentum is min(1 − 1/(k+1), m) with k the updates attempted since the teacher began, so the first update copies.
    Integer buffers are copied. The teacher never shares storage with the student.

    Args:
        momentum: m.
        measure: the running statistics of batch norm follow, with momentum min(1 − 1/(k+10), m), what the teacher's
            own layers are given inside ``looking``, instead of the student's buffers. Those are means over batches of
            which half are strong views, mixed and recoloured, while the teacher is used on images as they are.
    """

    def __init__(self, student: nn.Module, momentum: float = 0.99, *, measure: bool = False) -> None:
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum: expected a number in [0, 1], got {momentum}")
        self.momentum = momentum
        self.updates = 0
        self.module = copy.deepcopy(student).eval().requires_grad_(False)
        self._statistics = NormStatistics(self.module) if measure else None

    def looking(self) -> AbstractContextManager[None]:
        """Around the forward pass over the images whose statistics the teacher takes, if it measures any."""
        return nullcontext() if self._statistics is None else self._statistics.recording()

    @torch.no_grad()
    def restart(self, student: nn.Module) -> None:
        """Make the teacher a copy of ``student`` again, as if it had just been built from it."""
        for old, new in zip(_tensors(self.module), _tensors(student), strict=True):
            old.copy_(new)
        self.updates = 0

    def update(self, student: nn.Module, *, gate: Tensor | None = None, group: Group = None) -> None:
        """Move towards ``student``; where ``gate`` (0-d bool, on the device) is false only the attempt is counted.

        ``group``: processes whose measured statistics are averaged.
        """
        momentum = ema_momentum(self.updates, self.momentum)
        old, new = _tensors(self.module), _tensors(student)
        if self._statistics is not None:
            running = self._statistics.running
            own = {id(tensor) for tensor in running}
            others = [pair for pair in zip(old, new, strict=True) if id(pair[0]) not in own]
            old, new = [pair[0] for pair in others], [pair[1] for pair in others]
            slower = ema_momentum(self.updates + MEASURED_BEFORE, self.momentum)
            ema_update(running, self._statistics.measured(group), slower, gate=gate)
        ema_update(old, new, momentum, gate=gate)
        self.updates += 1

    def state_dict(self) -> dict:
        return {"module": self.module.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict) -> None:
        self.module.load_state_dict(state["module"])
        self.updates = state["updates"]


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*(parameter.detach() for parameter in module.parameters()), *module.buffers()]
