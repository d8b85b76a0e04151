"""Compute p(target) of every pixel in one sweep, select its exact k-th smallest by radix, and compare."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _cells
from ._cells import cell_pixels, corner_offsets, corner_pointers, label_sweep, load_labels, store_pixels
from ._launch import guard
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
    geometry,
    ALIGN: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    CELLS: tl.constexpr,
):
    """Compute p(target), or −1 at ignored pixels."""
    i_block = tl.program_id(0) // geometry.chunks
    i_chunk = tl.program_id(0) - i_block * geometry.chunks
    o_cell = i_block * CELLS + tl.arange(0, CELLS)
    position, pixels, b_wy, b_wx = cell_pixels(o_cell, i_chunk, geometry, ALIGN, R, S)
    o_corners = corner_offsets(position, geometry, stride_b, stride_h, stride_w)
    p_corners = corner_pointers(p_logits, o_corners)
    m_own = o_cell < geometry.cells
    b_label = load_labels(p_target, pixels, m_own, p_errors, num_classes, ignore_index, R, S)

    _, b_lse, b_target = label_sweep(p_corners, num_classes, stride_c, b_label, b_wy, b_wx, R, S)
    b_probability = tl.where(b_label >= 0, tl.exp2(b_target - b_lse), -1.0)
    store_pixels(p_probability, b_probability, pixels, R, S)


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
    """Return the mask, bool (B, H, W); ``errors`` counts labels out of range."""
    geometry, constants = _cells.geometry(logits, *target.shape[1:], align_corners)
    probability = torch.empty_like(target, dtype=torch.float32)
    keep = torch.empty_like(target, dtype=torch.bool)
    with guard(logits):
        ohem_mask_probability_kernel[(triton.cdiv(geometry.cells, constants["CELLS"]) * geometry.chunks,)](
            logits,
            target,
            probability,
            errors,
            logits.shape[1],
            ignore_index,
            *logits.stride(),
            geometry,
            **constants,
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
