"""The EMA teacher: a copy of the student that follows it slowly and is never trained itself."""

import copy

import torch
from torch import Tensor, nn

from .ops.ema_update import ema_update
from .reference import ema_momentum


class EMATeacher:
    """Keeps ``module``, an evaluation-mode copy of a student, as the moving average of its parameters and buffers.

    Momentum is min(1 − 1/(k+1), m) with k the updates attempted since the teacher began, so the first update copies.
    Integer buffers are copied. The teacher never shares storage with the student.
    """

    def __init__(self, student: nn.Module, momentum: float = 0.99) -> None:
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum: expected a number in [0, 1], got {momentum}")
        self.momentum = momentum
        self.updates = 0
        self.module = copy.deepcopy(student).eval().requires_grad_(False)

    @torch.no_grad()
    def restart(self, student: nn.Module) -> None:
        """Make the teacher a copy of ``student`` again, as if it had just been built from it."""
        for old, new in zip(_tensors(self.module), _tensors(student), strict=True):
            old.copy_(new)
        self.updates = 0

    def update(self, student: nn.Module, *, gate: Tensor | None = None) -> None:
        """Move toward ``student``; where ``gate`` (0-d bool, on the device) is false only the attempt is counted."""
        momentum = ema_momentum(self.updates, self.momentum)
        ema_update(_tensors(self.module), _tensors(student), momentum, gate=gate)
        self.updates += 1

    def state_dict(self) -> dict:
        return {"module": self.module.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict) -> None:
        self.module.load_state_dict(state["module"])
        self.updates = state["updates"]


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*(parameter.detach() for parameter in module.parameters()), *module.buffers()]
