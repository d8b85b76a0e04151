"""Copy numbers from the device to the host without waiting for the device."""

from collections.abc import Mapping

import torch
from torch import Tensor


class AsyncScalars:
    """Copy small tensors to the host while the device keeps working.

    All values travel in one float64 message, which is exact for integers below 2⁵³.
    """

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        self._like = {name: (value.shape, value.is_floating_point()) for name, value in values.items()}
        flat = torch.cat([value.detach().reshape(-1).double() for value in values.values()])
        self._arrived = None
        if flat.device.type == "cuda":
            self._host = torch.empty(flat.shape, dtype=flat.dtype, pin_memory=True)
            self._host.copy_(flat, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()
        else:
            self._host = flat.cpu()

    @property
    def ready(self) -> bool:
        """Return whether ``values`` would return without waiting."""
        return self._arrived is None or self._arrived.query()

    def values(self) -> dict[str, float | int | list]:
        """Return a number for each 0-d tensor and a list for each other one."""
        if self._arrived is not None:
            self._arrived.synchronize()
        parts = self._host.split([shape.numel() for shape, _ in self._like.values()])
        return {
            name: (part if fractional else part.long()).view(shape).tolist()
            for (name, (shape, fractional)), part in zip(self._like.items(), parts, strict=True)
        }
