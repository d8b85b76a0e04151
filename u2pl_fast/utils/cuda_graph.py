"""Replay a function of tensors as a CUDA graph: one launch instead of about thirty."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


class CudaGraph:
    """Capture a function and its gradient at the first call, and replay them in later calls.

    Shapes, dtypes and layouts must stay the same, and so must everything else that the function reads. The backward
    pass of a call must run before the next call. Results and the head's gradients are copies. The inputs' gradients are
    overwritten by the next backward pass, which comes after the network behind them has read them.

    Args:
        head: module whose parameters the function reads and that need a gradient, if any.
    """

    def __init__(self, head: nn.Module | None) -> None:
        self._replay: nn.Module | None = None
        self._head = head

    def __call__(
        self, function: Callable[..., tuple[Tensor, ...]], inputs: Sequence[Tensor], trial: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Return ``function(*inputs)``. Before the capture it runs on ``trial``, which must have no effects."""
        if self._replay is None:
            samples = tuple(x.detach().clone().requires_grad_(x.requires_grad) for x in trial)
            self._replay = torch.cuda.make_graphed_callables(_Function(function, self._head), samples)
            for parameter in self._replay.parameters():
                # Autograd uses a first gradient as ``.grad`` without a copy. The graph overwrites its gradients at
                # each replay, so gradients of steps that share one update would not add up.
                if parameter.requires_grad:
                    parameter.register_hook(torch.clone)
        return tuple(result.clone() for result in self._replay(*inputs))


class _Function(nn.Module):
    """Wrap a function in a module, because graph capture asks a module for its parameters."""

    def __init__(self, function: Callable[..., tuple[Tensor, ...]], head: nn.Module | None) -> None:
        super().__init__()
        self.head = head
        self._function = function

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self._function(*inputs)
