"""p(target) of every pixel in one sweep, its exact k-th smallest by radix selection, and the comparison."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _cells, _launch
from ._cells import cell_pixels, corner_offsets, corner_pointers, label_sweep, load_labels, store_pixels
from .masked_quantile import select

BLOCK = 1024
NUM_WARPS = 4


@triton.jit
def ohem_mask_probability_kernel(
    p_logits,
    p_target,
    p_probability,
    p_errors,
    num_classes,
    ignore_index,
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
    num_chunks,
    ALIGN: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    CELLS: tl.constexpr,
):
    """p(target), and −1 where the pixel is ignored."""
    i_block = tl.program_id(0) // num_chunks
    i_chunk = tl.program_id(0) - i_block * num_chunks
    o_cell = i_block * CELLS + tl.arange(0, CELLS)
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
    o_corners = corner_offsets(i_image, i_y, i_x, row_size, col_size, stride_b, stride_h, stride_w)
    p_corners = corner_pointers(p_logits, o_corners)
    m_own = o_cell < num_cells
    b_label = load_labels(
        p_target, o_first, rows_left, cols_left, col_out, m_own, p_errors, num_classes, ignore_index, R, S
    )

    _, b_lse, b_target = label_sweep(p_corners, num_classes, stride_c, b_label, b_wy, b_wx, R, S)
    b_probability = tl.where(b_label >= 0, tl.exp2(b_target - b_lse), -1.0)
    store_pixels(p_probability, b_probability, o_first, rows_left, cols_left, col_out, R, S)


@triton.jit
def ohem_mask_keep_kernel(p_probability, p_kth, p_keep, threshold, numel, BLOCK: tl.constexpr):
    o_pixel = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m_pixel = o_pixel < numel
    b_probability = tl.load(p_probability + o_pixel, mask=m_pixel, other=-1.0)
    limit = tl.maximum(tl.load(p_kth), threshold)
    tl.store(p_keep + o_pixel, ((b_probability >= 0) & (b_probability <= limit)).to(tl.uint8), mask=m_pixel)


def ohem_mask(
    logits: Tensor,
    target: Tensor,
    errors: Tensor,
    threshold: float,
    min_kept: int,
    ignore_index: int,
    align_corners: bool,
) -> Tensor:
    """bool (B, H, W); ``errors`` counts labels out of range."""
    grid = _cells.grid(logits, *target.shape[1:], align_corners)
    rows, columns = grid.rows.block, grid.columns.block
    launch = _launch.launch(rows * columns, logits.device)
    probability = torch.empty_like(target, dtype=torch.float32)
    keep = torch.empty_like(target, dtype=torch.bool)
    with _cells.guard(logits):
        ohem_mask_probability_kernel[(triton.cdiv(grid.cells, launch.cells) * grid.chunks,)](
            logits,
            target,
            probability,
            errors,
            logits.shape[1],
            ignore_index,
            *logits.stride(),
            *grid.arguments(),
            ALIGN=align_corners,
            R=rows,
            S=columns,
            CELLS=launch.cells,
            num_warps=launch.num_warps,
        )
        kth = select(probability, None, None, min_kept)
        ohem_mask_keep_kernel[(triton.cdiv(target.numel(), BLOCK),)](
            probability,
            kth,
            keep.view(torch.uint8),
            threshold,
            target.numel(),
            BLOCK=BLOCK,
            num_warps=NUM_WARPS,
        )
    return keep
