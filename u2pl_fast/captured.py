"""A function of tensors, replayed as a CUDA graph: one launch in place of some thirty."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


class Captured(nn.Module):
    """Captures a function and its gradient at the first call, and replays them from then on.

    Shapes, dtypes and layouts must stay as they were then, and so must all that the function reads besides its inputs.
    The results of a call are overwritten by the next one.

    Args:
        head: the module whose parameters the function reads and that want a gradient, if any.
    """

    def __init__(self, head: nn.Module | None) -> None:
        super().__init__()
        self._replay: Callable[..., tuple[Tensor, ...]] | None = None
        self._head = [head]  # hidden from nn.Module: its owner registers it

    def forward(
        self, function: Callable[..., tuple[Tensor, ...]], inputs: Sequence[Tensor], trial: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """``function(*inputs)``. It runs on ``trial`` a few times before the capture, which must change nothing."""
        if self._replay is None:
            samples = tuple(x.detach().clone().requires_grad_(x.requires_grad) for x in trial)
            self._replay = torch.cuda.make_graphed_callables(_Function(function, self._head[0]), samples)
        return self._replay(*inputs)


class _Function(nn.Module):
    """A function as the module that graph capture wants: it asks a module for its parameters."""

    def __init__(self, function: Callable[..., tuple[Tensor, ...]], head: nn.Module | None) -> None:
        super().__init__()
        self.head = head
        self._function = function

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self._function(*inputs)
