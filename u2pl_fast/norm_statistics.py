"""Batch norm statistics of a network in evaluation mode, measured while it looks at images."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .distributed import Group, all_sum, world_size


class NormStatistics:
    """Mean and variance of what each batch norm layer of ``module`` was given in the last measured forward pass.

    The layers go on normalising with their running statistics: measuring changes no output.
    """

    def __init__(self, module: nn.Module) -> None:
        kind = nn.modules.batchnorm._BatchNorm
        self._layers = [m for m in module.modules() if isinstance(m, kind) and m.running_mean is not None]
        self._mean = [torch.zeros_like(layer.running_mean) for layer in self._layers]
        self._var = [torch.zeros_like(layer.running_var) for layer in self._layers]
        self._values = [0] * len(self._layers)  # a channel, in the last measured pass; 0: none yet
        self._recording = False
        for index, layer in enumerate(self._layers):
            layer.register_forward_pre_hook(lambda _, inputs, index=index: self._measure(index, inputs[0]))

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Forward passes inside the block are measured."""
        self._recording = True
        try:
            yield
        finally:
            self._recording = False

    @property
    def running(self) -> list[Tensor]:
        """The layers' own buffers: all means, then all variances."""
        return [layer.running_mean for layer in self._layers] + [layer.running_var for layer in self._layers]

    @torch.no_grad()
    def measured(self, group: Group = None) -> list[Tensor]:
        """What ``running`` would be on the global batch alone; a layer that was not measured gives its buffers."""
        seen = [index for index, values in enumerate(self._values) if values]
        new = self.running
        if not seen:
            return new
        sizes = [self._mean[index].numel() for index in seen]
        values = [float(self._values[index]) for index in seen]
        # Unbiased to biased, so that the moments of several processes are means of theirs.
        moments = [self._var[i] * (1 - 1 / n) + self._mean[i].square() for i, n in zip(seen, values, strict=True)]
        flat = torch.cat([*(self._mean[index] for index in seen), *moments])
        mean, moment = (all_sum(flat, group) / world_size(group)).split(sum(sizes))
        means, moments = mean.split(sizes), moment.split(sizes)
        for index, n, mean, moment in zip(seen, values, means, moments, strict=True):
            n *= world_size(group)
            new[index] = mean
            new[len(self._layers) + index] = (moment - mean.square()).clamp_(min=0) * (n / (n - 1))
        return new

    def _measure(self, index: int, x: Tensor) -> None:
        values = x.numel() // x.shape[1]
        if self._recording and values > 1:
            # The one kernel that reads half-precision activations in either layout and sums in fp32.
            F.batch_norm(x, self._mean[index], self._var[index], training=True, momentum=1.0)
            self._values[index] = values
