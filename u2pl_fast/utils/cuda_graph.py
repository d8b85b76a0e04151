"""A function of tensors, replayed as a CUDA graph: one launch in place of some thirty."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


class CudaGraph:
    """Captures a function and its gradient at the first call, and replays them from then on.

    Shapes, dtypes and layouts must stay as they were then, and so must all that the function reads besides its inputs.
    A call's backward pass must run before the next call. Results and the head's gradients are the caller's to keep. The
    inputs' gradients are overwritten by the next backward pass; the network behind them has read them by then.

    Args:
        head: the module whose parameters the function reads and that want a gradient, if any.
    """

    def __init__(self, head: nn.Module | None) -> None:
        self._replay: nn.Module | None = None
        self._head = head

    def __call__(
        self, function: Callable[..., tuple[Tensor, ...]], inputs: Sequence[Tensor], trial: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """``function(*inputs)``. It runs on ``trial`` a few times before the capture, which must change nothing."""
        if self._replay is None:
            samples = tuple(x.detach().clone().requires_grad_(x.requires_grad) for x in trial)
            self._replay = torch.cuda.make_graphed_callables(_Function(function, self._head), samples)
            for parameter in self._replay.parameters():
                # Autograd takes a first gradient as ``.grad`` without a copy. The graph's own changes with each replay,
                # so that the gradients of steps that share one update would not add up.
                if parameter.requires_grad:
                    parameter.register_hook(torch.clone)
        return tuple(result.clone() for result in self._replay(*inputs))


class _Function(nn.Module):
    """A function as the module that graph capture wants: it asks a module for its parameters."""

    def __init__(self, function: Callable[..., tuple[Tensor, ...]], head: nn.Module | None) -> None:
        super().__init__()
        self.head = head
        self._function = function

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self._function(*inputs)
