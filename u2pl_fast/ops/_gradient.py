"""The backward pass of ops that compute their gradient in the forward pass: one scaled cast."""

import torch
from torch import Tensor


@torch.library.custom_op("u2pl_fast::scale_gradient", mutates_args=())
def scale_gradient(grad: Tensor, scale: Tensor, x: Tensor, op: str) -> Tensor:
    """grad · scale, rounded once to the dtype of the op's input ``x``.

    ``x`` is not read, but a second derivative would go through it, and finds a message that names ``op``.
    """
    return torch.mul(grad, scale, out=torch.empty_like(grad, dtype=x.dtype))


@scale_gradient.register_fake
def _(grad: Tensor, scale: Tensor, x: Tensor, op: str) -> Tensor:
    return torch.empty_like(grad, dtype=x.dtype)


def _save(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: Tensor) -> None:
    ctx.op = inputs[3]


def _no_second_derivative(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple:
    raise RuntimeError(f"{ctx.op} is differentiable once; for second derivatives call u2pl_fast.reference.{ctx.op}")


scale_gradient.register_autograd(_no_second_derivative, setup_context=_save)
