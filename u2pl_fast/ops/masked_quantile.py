"""Compute the exact quantile of the selected elements of a tensor, on the device and without a sort."""

import torch
import torch.distributed as dist
from torch import Tensor

from .. import reference
from . import _backend


def masked_quantile(x: Tensor, mask: Tensor, q: float | Tensor, *, group: dist.ProcessGroup | None = None) -> Tensor:
    """Compute the q-quantile of ``x[mask]`` by linear interpolation, NumPy's default method.

    With v the n selected values in ascending order and i = q·(n−1) in float64, the result lies at fraction i − ⌊i⌋
    between v[⌊i⌋] and v[⌊i⌋+1]. Radix selection over order-preserving 32-bit keys makes it exact, for any number of
    elements, with the same bits on every run. The result has no gradient.

    Args:
        x: any shape; float32, bfloat16, float16 or float64.
        mask: bool, the shape of ``x``.
        q: a number in [0, 1], or such a 0-d tensor, which stays on the device.
        group: a process group: take the quantile over the elements of all its processes, each of which must call.

    Returns:
        0-d float32, or float64 for float64 ``x``, on the device; NaN if nothing is selected or a selected value is NaN.

    Raises:
        ValueError: an argument has a wrong shape or device, or q is outside [0, 1].
        TypeError: an argument has a wrong dtype.

    Examples:
        >>> x = torch.tensor([1.0, 2.0, 3.0, 100.0])
        >>> ops.masked_quantile(x, x < 50, 0.75)
        tensor(2.5000)

    Source: the threshold γ_t of U²PL (Wang et al., CVPR 2022), there computed with ``np.percentile``.
    """
    if not x.is_floating_point():
        raise TypeError(f"x: expected a floating dtype, got {x.dtype}")
    if mask.dtype != torch.bool:
        raise TypeError(f"mask: expected bool, got {mask.dtype}")
    if mask.shape != x.shape or mask.device != x.device:
        raise ValueError(f"mask: expected {tuple(x.shape)} on {x.device}, got {tuple(mask.shape)} on {mask.device}")
    if isinstance(q, Tensor):
        if q.dim() != 0 or q.device != x.device:
            raise ValueError(f"q: expected a number or a 0-d tensor on {x.device}, got {tuple(q.shape)} on {q.device}")
        if q.is_complex():
            raise TypeError(f"q: expected a real number, got {q.dtype}")
        q = q.detach().double()
    elif not 0 <= q <= 1:
        raise ValueError(f"q: expected a number in [0, 1], got {q}")
    else:
        q = torch.full((), q, dtype=torch.float64, device=x.device)  # fills on the device; no copy from the host
    x, mask = x.detach().contiguous(), mask.contiguous()
    if group is None:
        return _masked_quantile(x, mask, q)
    if _backend.resolve("masked_quantile", x) == "triton":
        return _backend.kernel("masked_quantile").masked_quantile(x, mask, q, group)
    return reference.masked_quantile(x, mask, q, group=group)


@torch.library.custom_op("u2pl_fast::masked_quantile", mutates_args=())
def _masked_quantile(x: Tensor, mask: Tensor, q: Tensor) -> Tensor:
    if q.device.type == "cpu" and not 0 <= q <= 1:
        raise ValueError(f"q: expected a number in [0, 1], got {float(q)}")
    match _backend.resolve("masked_quantile", x):
        case "cpu":
            return _backend.extension().masked_quantile(x, mask, float(q))
        case "triton":
            return _backend.kernel("masked_quantile").masked_quantile(x, mask, q)
        case _:
            return reference.masked_quantile(x, mask, q)


@_masked_quantile.register_fake
def _(x: Tensor, mask: Tensor, q: Tensor) -> Tensor:
    return x.new_empty((), dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)
