"""Gather rows of a feature map at given pixels, with a gradient that is equal bit for bit on every run."""

from typing import Any

import torch
from torch import Tensor

from .. import reference
from . import _backend
from ._contrast_checks import check_features, check_values, dense_features, num_pixels


def gather_pixels(features: Tensor, index: Tensor) -> Tensor:
    """Gather the features at pixels ``index``, with zeros at −1.

    Pixel number b·h·w + y·w + x is row y, column x of image b. The result is differentiable with respect to
    ``features``. The backward pass sums the gradients of a repeated pixel in float32, in the order of ``index``, and
    rounds once, so that every run gives the same bits.

    Args:
        features: (B, D, h, w), contiguous or channels_last, or (R, D); float32, bfloat16, float16 or float64.
        index: int64, any shape: pixels in 0..P-1, or −1.

    Returns:
        (*index.shape, D), in the dtype of ``features``.

    Raises:
        ValueError: an argument has a wrong shape or device. On the CPU also: an index is not in −1..P-1.
        TypeError: an argument has a wrong dtype.

    Examples:
        >>> features = torch.arange(8.0).view(1, 2, 2, 2)
        >>> ops.gather_pixels(features, torch.tensor([3, -1]))
        tensor([[3., 7.],
                [0., 0.]])

    Source: the anchors of U²PL (Wang et al., CVPR 2022), taken from the feature map before the representation head.
    """
    check_features(features)
    if index.dtype != torch.int64:
        raise TypeError(f"index: expected torch.int64, got {index.dtype}")
    if index.device != features.device:
        raise ValueError(f"index: expected a tensor on {features.device}, got one on {index.device}")
    return _gather_pixels(dense_features(features), index.contiguous())


def _channels_last(features: Tensor) -> bool:
    return features.dim() == 4 and features.is_contiguous(memory_format=torch.channels_last)


def _layout(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


@torch.library.custom_op("u2pl_fast::gather_pixels", mutates_args=())
def _gather_pixels(features: Tensor, index: Tensor) -> Tensor:
    match _backend.resolve("gather_pixels", features):
        case "cpu":
            return _backend.extension().gather_pixels(features, index)
        case "triton":
            return _backend.kernel("gather_pixels").gather_pixels(features, index)
        case _:
            check_values("index", index, -1, num_pixels(features))
            return reference.gather_pixels(features, index)


@_gather_pixels.register_fake
def _(features: Tensor, index: Tensor) -> Tensor:
    return features.new_empty((*index.shape, features.shape[1]))


@torch.library.custom_op("u2pl_fast::gather_pixels_backward", mutates_args=())
def _gather_pixels_backward(grad: Tensor, index: Tensor, shape: list[int], channels_last: bool) -> Tensor:
    """Return the gradient of features of this shape and layout."""
    match _backend.resolve("gather_pixels", grad):
        case "cpu":
            return _backend.extension().gather_pixels_backward(grad, index, shape, channels_last)
        case "triton":
            return _backend.kernel("gather_pixels").gather_pixels_backward(grad, index, shape, _layout(channels_last))
        case _:
            return _plain_backward(grad, index, shape, channels_last)


def _plain_backward(grad: Tensor, index: Tensor, shape: list[int], channels_last: bool) -> Tensor:
    """Sum in float32 over segments of sorted pixels.

    ``index_add`` is not used, since its order of addition varies on CUDA.
    """
    dim = shape[1]
    pixels = shape[0] if len(shape) == 2 else shape[0] * shape[2] * shape[3]
    where = torch.where(index < 0, pixels, index).flatten()
    ordered, order = where.sort(stable=True)
    rows = reference.wide(grad).reshape(-1, dim)[order]
    begins = torch.searchsorted(ordered, torch.arange(pixels + 1, device=grad.device))
    sums = torch.segment_reduce(rows, "sum", offsets=begins, axis=0, unsafe=True, initial=0) if pixels else rows[:0]
    sums = sums.to(grad.dtype)
    if len(shape) == 2:
        return sums
    maps = sums.view(shape[0], *shape[2:], dim).permute(0, 3, 1, 2)
    return maps.clone(memory_format=_layout(channels_last))


@_gather_pixels_backward.register_fake
def _(grad: Tensor, index: Tensor, shape: list[int], channels_last: bool) -> Tensor:
    return torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=_layout(channels_last))


def _save(ctx: Any, inputs: tuple, output: Tensor) -> None:
    features, index = inputs
    ctx.save_for_backward(index)
    ctx.shape, ctx.channels_last = list(features.shape), _channels_last(features)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    (index,) = ctx.saved_tensors
    return _gather_pixels_backward(grad.contiguous(), index, ctx.shape, ctx.channels_last), None


_gather_pixels.register_autograd(_backward, setup_context=_save)


def _save_twice(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])


def _backward_twice(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    (index,) = ctx.saved_tensors
    return gather_pixels(grad, index), None, None, None


_gather_pixels_backward.register_autograd(_backward_twice, setup_context=_save_twice)
