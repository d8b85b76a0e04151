"""Read representations in place: maps (B, D, h, w), contiguous or channels_last, and rows (R, D).

Pixel p in bank order (image, row, column) lies in image p // per_image. In both layouts, the pixels of an image have a
fixed stride, so that an offset is image · stride_b + (p mod per_image) · stride_p + d · stride_d.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor


class Rows(NamedTuple):
    """Hold the arguments of ``row_offset``, in its order, and the stride from channel to channel."""

    per_image: int
    stride_b: int
    stride_p: int
    stride_d: int


def dense(features: Tensor) -> Tensor:
    """Return the tensor, or a copy if the rows of an image are not consecutive."""
    if features.dim() == 2 or features.stride(2) == features.shape[3] * features.stride(3):
        return features
    return features.contiguous()


def rows(features: Tensor) -> Rows:
    """Return the strides of a ``dense`` tensor."""
    if features.dim() == 2:
        return Rows(max(features.shape[0], 1), 0, *features.stride())
    batch, _, height, width = features.shape
    if batch * height * width >= 2**31:
        raise ValueError(f"features: the triton kernels take fewer than 2³¹ pixels, got {batch * height * width}")
    return Rows(height * width, features.stride(0), features.stride(3), features.stride(1))


def wide(features: Tensor) -> bool:
    """Return whether the channels of a pixel are adjacent, so that a lane reads several at once."""
    return features.stride(1) == 1


@triton.jit
def row_offset(o_pixel, per_image, stride_b, stride_p):
    """Return the offsets of pixels, in 64 bits."""
    i_image = o_pixel // per_image
    return i_image.to(tl.int64) * stride_b + (o_pixel - i_image * per_image).to(tl.int64) * stride_p


@triton.jit
def load_across(p_x, o_tile, m_tile, other):
    """Load a tile with its last axis across the lanes.

    For a 2-D tile whose neighbors are not adjacent in memory, versions of Triton put different axes across the lanes. A
    1-D load has one possible order, and the tile takes its layout from it. (For AMD, a tile of pointers cannot be
    reshaped, so offsets are.)
    """
    SIZE: tl.constexpr = o_tile.shape[0] * o_tile.shape[1]
    b_run = tl.load(p_x + tl.reshape(o_tile, (SIZE,)), mask=tl.reshape(m_tile, (SIZE,)), other=other)
    return tl.reshape(b_run, o_tile.shape)
