"""Reading representations in place: maps (B, D, h, w), contiguous or channels_last, and rows (R, D) alike.

Pixel p in bank order (image, row, column) lies in image p // per_image; both layouts give each pixel of an image a
fixed stride, so that an offset is image · stride_b + (p mod per_image) · stride_p + d · stride_d.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor


class Rows(NamedTuple):
    """What ``row_offset`` needs, in its order, and the stride from channel to channel."""

    per_image: int
    stride_b: int
    stride_p: int
    stride_d: int


def dense(features: Tensor) -> Tensor:
    """The tensor itself unless the rows of an image don't follow one another: then a copy."""
    if features.dim() == 2 or features.stride(2) == features.shape[3] * features.stride(3):
        return features
    return features.contiguous()


def rows(features: Tensor) -> Rows:
    """Strides of a ``dense`` tensor."""
    if features.dim() == 2:
        return Rows(max(features.shape[0], 1), 0, *features.stride())
    batch, _, height, width = features.shape
    if batch * height * width >= 2**31:
        raise ValueError(f"features: the triton kernels take fewer than 2³¹ pixels, got {batch * height * width}")
    return Rows(height * width, features.stride(0), features.stride(3), features.stride(1))


def wide(features: Tensor) -> bool:
    """Whether the channels of a pixel lie together, so that a lane reads several at once."""
    return features.stride(1) == 1


@triton.jit
def row_offset(o_pixel, per_image, stride_b, stride_p):
    """Where pixels begin, in 64 bits."""
    i_image = o_pixel // per_image
    return i_image.to(tl.int64) * stride_b + (o_pixel - i_image * per_image).to(tl.int64) * stride_p


@triton.jit
def load_across(p_x, o_tile, m_tile, other):
    """Load a tile with its last axis across the lanes.

    Of a 2-D tile whose neighbors don't lie together, versions of Triton put different axes across the lanes. A run of
    values has one order, and the tile takes its layout from the run. (A tile of pointers cannot become one for AMD.)
    """
    SIZE: tl.constexpr = o_tile.shape[0] * o_tile.shape[1]
    b_run = tl.load(p_x + tl.reshape(o_tile, (SIZE,)), mask=tl.reshape(m_tile, (SIZE,)), other=other)
    return tl.reshape(b_run, o_tile.shape)
