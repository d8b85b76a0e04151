"""Compute label, confidence and entropy in one sweep over the classes, with the scheme of ``_cells.py``."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _cells
from ._cells import (
    LN2,
    LOWEST,
    SHIFTED,
    TINY,
    blend,
    cell_pixels,
    corner_maximum,
    corner_offsets,
    corner_pointers,
    corners,
    store_pixels,
)
from ._launch import guard


@triton.jit
def finite_values(p_corners, offset, b_top, b_wy, b_wx):
    """Return values (R, S, CELLS) minus ``b_top``, with −∞ at the corners made finite.

    Otherwise the blend of a class at −∞ with weight 0 would be NaN. A NaN stays NaN.
    """
    b_ul, b_ur, b_ll, b_lr = corners(p_corners, offset, b_top)
    b_ul = tl.where(b_ul < LOWEST, LOWEST, b_ul)
    b_ur = tl.where(b_ur < LOWEST, LOWEST, b_ur)
    b_ll = tl.where(b_ll < LOWEST, LOWEST, b_ll)
    b_lr = tl.where(b_lr < LOWEST, LOWEST, b_lr)
    return blend((b_ul, b_ur, b_ll, b_lr), b_wy, b_wx)


@triton.jit
def pixel_stats_fwd_kernel(
    p_logits,
    p_label,
    p_confidence,
    p_entropy,
    num_classes,
    stride_b,
    stride_c,
    stride_h,
    stride_w,
    geometry,
    ALIGN: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    CELLS: tl.constexpr,
):
    i_block = tl.program_id(0) // geometry.chunks
    i_chunk = tl.program_id(0) - i_block * geometry.chunks
    o_cell = i_block * CELLS + tl.arange(0, CELLS)
    position, pixels, b_wy, b_wx = cell_pixels(o_cell, i_chunk, geometry, ALIGN, R, S)
    o_corners = corner_offsets(position, geometry, stride_b, stride_h, stride_w)
    p_corners = corner_pointers(p_logits, o_corners)

    # Σ 2^d and Σ d·2^d, d = value − top: the largest logit at the cell's corners, or of the pixel so far
    b_label = tl.zeros((R, S, CELLS), tl.int32)
    b_none = tl.zeros((R, S, CELLS), tl.float32)
    if R * S >= SHIFTED:
        b_top = corner_maximum(p_corners, num_classes, stride_c)
        b_max = finite_values(p_corners, 0, b_top, b_wy, b_wx)
        b_sum = tl.exp2(b_max)
        b_moment = b_max * b_sum
        offset = tl.zeros((), tl.int64)
        for i_class in range(1, num_classes):
            offset += stride_c
            b_value = finite_values(p_corners, offset, b_top, b_wy, b_wx)
            e = tl.exp2(b_value)
            b_sum += e
            b_moment += b_value * e
            above = b_value > b_max
            b_label = tl.where(above, i_class, b_label)
            b_max = tl.where(above, b_value, b_max)
        if (tl.min(b_sum) < TINY) | (num_classes == 1):
            b_sum, b_moment = b_none, b_none
            offset = tl.zeros((), tl.int64)
            for _ in range(0, num_classes):
                delta = finite_values(p_corners, offset, b_top, b_wy, b_wx) - b_max
                e = tl.exp2(delta)
                b_sum += e
                b_moment += delta * e
                offset += stride_c
            b_max = b_none
    else:
        b_own = finite_values(p_corners, 0, 0.0, b_wy, b_wx)
        b_sum, b_moment = b_none + 1.0, b_none
        offset = tl.zeros((), tl.int64)
        for i_class in range(1, num_classes):
            offset += stride_c
            b_value = finite_values(p_corners, offset, 0.0, b_wy, b_wx)
            delta = b_value - b_own
            e = tl.exp2(-tl.abs(delta))
            above = delta > 0
            b_moment = tl.where(above, e * (b_moment - delta * b_sum), b_moment + delta * e)
            b_sum = tl.where(above, b_sum * e + 1.0, b_sum + e)
            b_label = tl.where(above, i_class, b_label)
            b_own = tl.where(above, b_value, b_own)
        b_max = b_none

    b_share = 1.0 / b_sum
    b_confidence = tl.exp2(b_max) * b_share
    b_entropy = (tl.log2(b_sum) - b_moment * b_share) * LN2
    b_entropy = tl.where(b_entropy < 0, 0.0, b_entropy)
    store_pixels(p_label, b_label, pixels, R, S)
    store_pixels(p_confidence, b_confidence, pixels, R, S)
    store_pixels(p_entropy, b_entropy, pixels, R, S)


def pixel_stats(logits: Tensor, height: int, width: int, align_corners: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return (label, confidence, entropy), each (B, H, W)."""
    num_classes = logits.shape[1]
    shape = (logits.shape[0], height, width)
    label = logits.new_empty(shape, dtype=torch.uint8 if num_classes <= 255 else torch.int16)
    confidence, entropy = (logits.new_empty(shape, dtype=torch.float32) for _ in range(2))
    geometry, constants = _cells.geometry(logits, height, width, align_corners)
    with guard(logits):
        pixel_stats_fwd_kernel[(triton.cdiv(geometry.cells, constants["CELLS"]) * geometry.chunks,)](
            logits,
            label,
            confidence,
            entropy,
            num_classes,
            *logits.stride(),
            geometry,
            **constants,
        )
    return label, confidence, entropy
