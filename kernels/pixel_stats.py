"""Label, confidence and entropy in one sweep over the classes; the scheme is in ``_cells.py``."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _cells, _launch
from ._cells import LN2, blend, cell_pixels, class_offset, corner_pointers, corners, store_pixels

LOWEST = tl.constexpr(-1e30)


@triton.jit
def finite_corners(p_ul, p_ur, p_ll, p_lr, offset):
    """Corners with −∞ made finite, so that blending a class that is switched off gives no 0·∞; NaN stays NaN."""
    b_ul, b_ur, b_ll, b_lr = corners(p_ul, p_ur, p_ll, p_lr, offset)
    b_ul = tl.where(b_ul < LOWEST, LOWEST, b_ul)
    b_ur = tl.where(b_ur < LOWEST, LOWEST, b_ur)
    b_ll = tl.where(b_ll < LOWEST, LOWEST, b_ll)
    b_lr = tl.where(b_lr < LOWEST, LOWEST, b_lr)
    return b_ul, b_ur, b_ll, b_lr


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
    num_cells,
    row_size,
    row_out,
    row_step,
    row_shift,
    row_unit,
    row_scale,
    col_size,
    col_out,
    col_step,
    col_shift,
    col_unit,
    col_scale,
    col_chunks,
    ALIGN: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    CELLS: tl.constexpr,
):
    i_chunk = tl.program_id(1)
    o_cell = tl.program_id(0) * CELLS + tl.arange(0, CELLS)
    i_image, i_y, i_x, b_wy, b_wx, o_first, rows_left, cols_left = cell_pixels(
        o_cell,
        i_chunk,
        num_cells,
        row_size,
        row_out,
        row_step,
        row_shift,
        row_unit,
        row_scale,
        col_size,
        col_out,
        col_step,
        col_shift,
        col_unit,
        col_scale,
        col_chunks,
        ALIGN,
        R,
        S,
    )
    p_ul, p_ur, p_ll, p_lr = corner_pointers(
        p_logits, i_image, i_y, i_x, row_size, col_size, stride_b, stride_h, stride_w
    )

    b_ul, b_ur, b_ll, b_lr = finite_corners(p_ul, p_ur, p_ll, p_lr, 0)
    b_max = blend(b_ul, b_ur, b_ll, b_lr, b_wy, b_wx)
    b_sum = tl.full((R, S, CELLS), 1.0, tl.float32)
    b_moment = tl.zeros((R, S, CELLS), tl.float32)  # Σ d·2^d, d = value − max ≤ 0
    b_label = tl.zeros((R, S, CELLS), tl.int32)
    for i_class in range(1, num_classes):
        b_ul, b_ur, b_ll, b_lr = finite_corners(p_ul, p_ur, p_ll, p_lr, class_offset(i_class, stride_c))
        b_value = blend(b_ul, b_ur, b_ll, b_lr, b_wy, b_wx)
        delta = b_value - b_max
        e = tl.exp2(-tl.abs(delta))
        above = delta > 0
        b_moment = tl.where(above, e * (b_moment - delta * b_sum), b_moment + delta * e)
        b_sum = tl.where(above, b_sum * e + 1.0, b_sum + e)
        b_label = tl.where(above, i_class, b_label)
        b_max = tl.where(above, b_value, b_max)

    b_confidence = 1.0 / b_sum
    b_entropy = (tl.log2(b_sum) - b_moment * b_confidence) * LN2
    store_pixels(p_label, b_label, o_first, rows_left, cols_left, col_out, R, S)
    store_pixels(p_confidence, b_confidence, o_first, rows_left, cols_left, col_out, R, S)
    store_pixels(p_entropy, b_entropy, o_first, rows_left, cols_left, col_out, R, S)


def pixel_stats(logits: Tensor, height: int, width: int, align_corners: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(label, confidence, entropy), each (B, H, W)."""
    num_classes = logits.shape[1]
    shape = (logits.shape[0], height, width)
    label = logits.new_empty(shape, dtype=torch.uint8 if num_classes <= 255 else torch.int16)
    confidence, entropy = (logits.new_empty(shape, dtype=torch.float32) for _ in range(2))
    grid = _cells.grid(logits, height, width, align_corners)
    rows, columns = grid.rows.block, grid.columns.block
    launch = _launch.launch(rows * columns, logits.device)
    with _cells.guard(logits):
        pixel_stats_fwd_kernel[(triton.cdiv(grid.cells, launch.cells), grid.chunks)](
            logits,
            label,
            confidence,
            entropy,
            num_classes,
            *logits.stride(),
            *grid.arguments(),
            ALIGN=align_corners,
            R=rows,
            S=columns,
            CELLS=launch.cells,
            num_warps=launch.num_warps,
        )
    return label, confidence, entropy
