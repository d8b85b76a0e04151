"""Define the backward pass of ops that compute their gradient in the forward pass."""

from typing import Any

import torch
from torch import Tensor

PART = 2**17


@torch.library.custom_op("u2pl_fast::scale_gradient", mutates_args=())
def scale_gradient(grad: Tensor, scale: Tensor, x: Tensor, op: str) -> Tensor:
    """Return grad · scale, rounded once to the dtype of the op's input ``x``.

    ``x`` is an argument so that a second derivative raises an error that names ``op``. Its values are not read.
    """
    out = torch.empty_like(grad, dtype=x.dtype)
    gapless = grad.is_contiguous() or (grad.dim() == 4 and grad.is_contiguous(memory_format=torch.channels_last))
    if grad.device.type != "cpu" or out.dtype == grad.dtype or not gapless:
        return torch.mul(grad, scale, out=out)
    # On the CPU, a product with another output dtype allocates a temporary of its size. Small parts keep it in cache.
    for part, target in zip(_flat(grad).split(PART), _flat(out).split(PART), strict=True):
        torch.mul(part, scale, out=target)
    return out


def _flat(x: Tensor) -> Tensor:
    """Return all elements of a tensor without gaps, in memory order."""
    return x.as_strided((x.numel(),), (1,))


@scale_gradient.register_fake
def _(grad: Tensor, scale: Tensor, x: Tensor, op: str) -> Tensor:
    return torch.empty_like(grad, dtype=x.dtype)


def _save(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.op = inputs[3]


def _no_second_derivative(ctx: Any, grad: Tensor) -> tuple:
    raise RuntimeError(f"{ctx.op} is differentiable once; for second derivatives call u2pl_fast.reference.{ctx.op}")


scale_gradient.register_autograd(_no_second_derivative, setup_context=_save)
