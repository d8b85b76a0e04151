"""Keep the EMA teacher: a moving average of the student, without training of its own."""

import copy

import torch
from torch import Tensor, nn

from .ops.ema_update import ema_update
from .reference import ema_momentum


class EMATeacher:
    """Keep an evaluation-mode copy of a student as the moving average of its parameters and buffers.

    The momentum is min(1 − 1/(k+1), m), where k is the number of updates attempted so far, so that the first update
    copies the student. Integer buffers are copied. The teacher never shares storage with the student.

    Args:
        student: the module to copy.
        momentum: m in [0, 1].

    Attributes:
        module: the teacher's module.
        updates: k.

    Raises:
        ValueError: the momentum is outside [0, 1].

    Examples:
        >>> from u2pl_fast import EMATeacher
        >>> student = torch.nn.Conv2d(3, 5, kernel_size=1)
        >>> teacher = EMATeacher(student, momentum=0.99)
        >>> teacher.update(student)  # after each optimizer step
        >>> logits = teacher.module(torch.randn(1, 3, 8, 8))

    Source: Mean Teacher (Tarvainen & Valpola, NeurIPS 2017).
    """

    def __init__(self, student: nn.Module, momentum: float = 0.99) -> None:
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum: expected a number in [0, 1], got {momentum}")
        self.momentum = momentum
        self.updates = 0
        self.module = copy.deepcopy(student).eval().requires_grad_(False)

    @torch.no_grad()
    def restart(self, student: nn.Module) -> None:
        """Copy ``student`` again, and set the number of updates to 0."""
        for old, new in zip(_tensors(self.module), _tensors(student), strict=True):
            old.copy_(new)
        self.updates = 0

    def update(self, student: nn.Module, *, gate: Tensor | None = None) -> None:
        """Move toward ``student`` by one step.

        Args:
            student: the module to follow.
            gate: 0-d bool on the device. If it is false, the teacher does not change, but the attempt counts.
        """
        momentum = ema_momentum(self.updates, self.momentum)
        ema_update(_tensors(self.module), _tensors(student), momentum, gate=gate)
        self.updates += 1

    def state_dict(self) -> dict:
        """Return the module's state dict and the number of updates."""
        return {"module": self.module.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict) -> None:
        """Restore what ``state_dict`` returned."""
        self.module.load_state_dict(state["module"])
        self.updates = state["updates"]


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*(parameter.detach() for parameter in module.parameters()), *module.buffers()]
