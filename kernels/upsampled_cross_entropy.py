"""Compute cross-entropy and its low-resolution gradient in one kernel without atomics; see ``_cells.py``.

Sweep 1 over the classes is a log-sum-exp. Sweep 2 recomputes the values, forms exp(l − lse) − target and folds it onto
the corners of the cell: per lane, four shares of a sum over at most 16 pixels. The right-hand shares move one lane to
the right. Therefore a block begins one cell early (the halo), and every share is written by one lane only. Upper and
lower shares go to separate buffers, and so do the shares of each chunk of large cells. They are added in a fixed order,
so that every run gives the same bits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _cells
from ._cells import (
    LN2,
    blend,
    cell_pixels,
    corner_offsets,
    corner_pointers,
    corners,
    label_sweep,
    load_labels,
    load_pixels,
)
from ._launch import guard


@triton.jit
def upsampled_cross_entropy_fwd_kernel(
    p_logits,
    p_target,
    p_weight,
    p_pixel_weight,
    p_upper,
    p_lower,
    p_partial,
    p_errors,
    num_classes,
    ignore_index,
    label_smoothing,
    stride_b,
    stride_c,
    stride_h,
    stride_w,
    stride_chunk,
    geometry,
    ALIGN: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_PIXEL_WEIGHT: tl.constexpr,
    SMOOTHING: tl.constexpr,
    GRAD: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    CELLS: tl.constexpr,
):
    FIRST: tl.constexpr = 0 if ALIGN else -1
    WEIGHTED: tl.constexpr = HAS_WEIGHT or HAS_PIXEL_WEIGHT
    i_block = tl.program_id(0) // geometry.chunks
    i_chunk = tl.program_id(0) - i_block * geometry.chunks
    o_lane = tl.arange(0, CELLS)
    o_cell = i_block * (CELLS - 1) - 1 + o_lane
    m_own = (o_lane > 0) & (o_cell < geometry.cells)
    position, pixels, b_wy, b_wx = cell_pixels(o_cell, i_chunk, geometry, ALIGN, R, S)
    o_corners = corner_offsets(position, geometry, stride_b, stride_h, stride_w)
    p_corners = corner_pointers(p_logits, o_corners)

    b_label = load_labels(p_target, pixels, m_own, p_errors, num_classes, ignore_index, R, S)
    m_kept = b_label >= 0

    # Sweep 1: lse and the target's logit.
    b_top, b_lse, b_target = label_sweep(p_corners, num_classes, stride_c, b_label, b_wy, b_wx, R, S)

    # ℓ = hard·(−log p_y) + spread·Σ_c w_c·(−log p_c), times the pixel's weight
    hard = 1.0 - label_smoothing
    spread = label_smoothing / num_classes
    b_weight = tl.where(m_kept, 1.0, 0.0)
    if HAS_PIXEL_WEIGHT:
        b_pixel_weight = load_pixels(p_pixel_weight, pixels, 0, R, S)
        b_weight = tl.where(m_kept, b_pixel_weight.to(tl.float32), 0.0)
    b_hard = b_weight
    if HAS_WEIGHT:
        b_hard = tl.zeros((R, S, CELLS), tl.float32)
        for i_class in range(0, num_classes):  # a gather by label would change the layout, see load_pixels
            b_hard = tl.where(b_label == i_class, tl.load(p_weight + i_class), b_hard)
        b_hard *= b_weight
    m_count = m_kept & m_own[None, None, :]
    b_loss = b_hard * (b_lse - b_target)
    if SMOOTHING:
        # Σ w_c and Σ w_c·l_c. Blending is linear: sum at the corners, blend once.
        class_weight, weight_total = 1.0, 0.0
        all_ul, all_ur, all_ll, all_lr = (tl.zeros((CELLS,), tl.float32),) * 4
        offset = tl.zeros((), tl.int64)
        for i_class in range(0, num_classes):
            b_ul, b_ur, b_ll, b_lr = corners(p_corners, offset, b_top)
            if HAS_WEIGHT:
                class_weight = tl.load(p_weight + i_class)
            weight_total += class_weight
            all_ul += b_ul * class_weight
            all_ur += b_ur * class_weight
            all_ll += b_ll * class_weight
            all_lr += b_lr * class_weight
            offset += stride_c
        b_all = blend((all_ul, all_ur, all_ll, all_lr), b_wy, b_wx)
        b_loss = hard * b_loss + spread * b_weight * (weight_total * b_lse - b_all)
    p_own = p_partial + tl.program_id(0)
    tl.store(p_own, tl.sum(tl.where(m_count, b_loss, 0.0)) * LN2)
    tl.store(p_own + tl.num_programs(0), tl.sum(tl.where(m_count, b_hard, 0.0)))

    if GRAD:
        # Sweep 2: pw·(p·Σ share − share_c), share_c = w_c·(hard·[c = y] + spread); unsmoothed, pw·w_y·(p − [c = y]).
        # Without weights, p is set to 0 at ignored pixels, which saves a product per class and the registers of a mask.
        b_scale = b_hard
        if SMOOTHING and HAS_WEIGHT:
            b_scale = hard * b_hard + spread * weight_total * b_weight
        if not WEIGHTED:
            b_lse = tl.where(m_kept, b_lse, float("inf"))
        _, i_y, i_x = position
        # Offsets of the corners, in two buffers with the strides of the logits.
        p_up = p_upper + i_chunk.to(tl.int64) * stride_chunk + o_corners[0]
        p_low = p_lower + i_chunk.to(tl.int64) * stride_chunk + o_corners[2]
        m_up = m_own & (i_x >= 0) & (i_y >= 0)
        m_low = m_own & (i_x >= 0) & (i_y + 1 < geometry.rows.size)
        o_left = tl.maximum(o_lane - 1, 0)
        m_left = i_x > FIRST
        offset = tl.zeros((), tl.int64)
        for i_class in range(0, num_classes):
            b_value = blend(corners(p_corners, offset, b_top), b_wy, b_wx)
            b_slope = tl.exp2(b_value - b_lse)
            if SMOOTHING:
                if HAS_WEIGHT:
                    class_weight = tl.load(p_weight + i_class)
                b_share = tl.where(b_label >= 0, class_weight * spread, 0.0)
                b_share = tl.where(b_label == i_class, class_weight * (hard + spread), b_share)
                b_slope = b_slope * b_scale - b_weight * b_share if WEIGHTED else b_slope - b_share
            else:
                b_slope -= tl.where(b_label == i_class, 1.0, 0.0)
                if WEIGHTED:
                    b_slope *= b_scale
            b_low = tl.sum(b_slope * b_wy, 0)[None, :, :]
            b_up = tl.sum(b_slope, 0)[None, :, :] - b_low
            b_up_right = tl.sum(tl.sum(b_up * b_wx, 1), 0)
            b_low_right = tl.sum(tl.sum(b_low * b_wx, 1), 0)
            b_up_left = tl.sum(tl.sum(b_up, 1), 0) - b_up_right
            b_low_left = tl.sum(tl.sum(b_low, 1), 0) - b_low_right
            b_up_left += tl.where(m_left, tl.gather(b_up_right, o_left, 0), 0.0)
            b_low_left += tl.where(m_left, tl.gather(b_low_right, o_left, 0), 0.0)
            tl.store(p_up + offset, b_up_left, mask=m_up)
            tl.store(p_low + offset, b_low_left, mask=m_low)
            offset += stride_c


def upsampled_cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pixel_weight: Tensor | None,
    errors: Tensor,
    ignore_index: int,
    label_smoothing: float,
    align_corners: bool,
    need_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return num, den and the gradient of num, fp32 with the strides of ``logits``; ``errors`` counts bad labels."""
    num_classes = logits.shape[1]
    geometry, constants = _cells.geometry(logits, *target.shape[1:], align_corners)
    programs = triton.cdiv(geometry.cells, constants["CELLS"] - 1) * geometry.chunks
    partial = logits.new_empty((2, programs), dtype=torch.float32)
    if weight is not None:
        weight = weight.float().contiguous()
    shape = (geometry.chunks if need_grad else 0, *logits.shape)
    strides = (logits.numel(), *logits.stride())
    upper, lower = (torch.empty_strided(shape, strides, dtype=torch.float32, device=logits.device) for _ in range(2))
    with guard(logits):
        upsampled_cross_entropy_fwd_kernel[(programs,)](
            logits,
            target,
            partial if weight is None else weight,
            partial if pixel_weight is None else pixel_weight,
            upper,
            lower,
            partial,
            errors,
            num_classes,
            ignore_index,
            label_smoothing,
            *logits.stride(),
            logits.numel(),
            geometry,
            HAS_WEIGHT=weight is not None,
            HAS_PIXEL_WEIGHT=pixel_weight is not None,
            SMOOTHING=label_smoothing > 0,
            GRAD=need_grad,
            **constants,
        )
    num, den = partial[0].sum(), partial[1].sum()
    if not need_grad:
        return num, den, upper.flatten()
    first = 1 if align_corners else 0  # with aligned corners, row 0 is the lower row of no cell
    grad = _added(upper)
    grad[:, :, first:] += _added(lower)[:, :, first:]
    return num, den, grad


def _added(parts: Tensor) -> Tensor:
    """Return the sum over the first axis, with the strides of a part."""
    if parts.shape[0] == 1:
        return parts[0]
    return torch.sum(parts, 0, out=torch.empty_strided(parts.shape[1:], parts.stride()[1:], device=parts.device))
