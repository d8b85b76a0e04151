"""Gather rows of a feature map at given pixels; in the backward pass, sum the gradients of each pixel in a fixed order.

The backward pass needs no sort. The first kernel sets the whole gradient to zero and records the first and the last row
of each pixel by an integer maximum, whose order does not matter. In the second kernel, the program of a pixel's first
row scans the rows up to the last one and adds those of its pixel, so that the sum depends on ``index`` alone. For R
rows of D channels at P pixels, this writes P·D values and 8·P bytes of records, and reads and writes R·D values. It
compares all rows between the first and the last of each pixel. The draws of a class are consecutive, so these are few.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _rows
from ._launch import guard
from ._rows import load_across, row_offset

ROWS = 8  # rows read at once
SCAN = 64  # rows compared at once
CHANNELS = 256  # channels per program, at most
VALUES = 4096  # gradient values that a program sets to zero
LINKS = 128  # rows that a program records


@triton.jit
def gather_pixels_fwd_kernel(
    p_features,
    p_index,
    p_rows,
    num_rows,
    dim,
    per_image,
    stride_b,
    stride_p,
    stride_d,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    o_row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    o_channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    m_value = (o_row < num_rows)[:, None] & (o_channel < dim)[None, :]
    o_pixel = tl.load(p_index + o_row, mask=o_row < num_rows, other=-1).to(tl.int32)
    o_start = row_offset(tl.maximum(o_pixel, 0), per_image, stride_b, stride_p)
    o_value = o_start[:, None] + o_channel.to(tl.int64)[None, :] * stride_d
    m_read = m_value & (o_pixel >= 0)[:, None]
    if WIDE:
        b_value = tl.load(p_features + o_value, mask=m_read, other=0)
    else:  # in the layout of the store: the values that are read are not adjacent
        b_value = load_across(p_features, o_value, m_read, 0)
    tl.store(p_rows + o_row[:, None] * dim + o_channel[None, :], b_value, mask=m_value)


@triton.jit
def gather_pixels_link_kernel(
    p_index, p_ends, p_features_grad, num_rows, numel, LINKS: tl.constexpr, VALUES: tl.constexpr
):
    """Set the gradient to zero, and record the first and last row of each pixel.

    ends[0] becomes num_rows − first and ends[1] becomes last + 1; both are 0 before, and stay 0 for a pixel without
    rows.
    """
    i_part = tl.program_id(0).to(tl.int64)
    o_value = i_part * VALUES + tl.arange(0, VALUES)
    tl.store(p_features_grad + o_value, tl.zeros((VALUES,), p_features_grad.dtype.element_ty), mask=o_value < numel)
    if i_part * LINKS < num_rows:
        o_row = i_part * LINKS + tl.arange(0, LINKS)
        b_pixel = tl.load(p_index + o_row, mask=o_row < num_rows, other=-1)
        p_end = p_ends + b_pixel * 2
        tl.atomic_max(p_end, (num_rows - o_row).to(tl.int32), mask=b_pixel >= 0, sem="relaxed")
        tl.atomic_max(p_end + 1, (o_row + 1).to(tl.int32), mask=b_pixel >= 0, sem="relaxed")


@triton.jit
def gather_pixels_bwd_kernel(
    p_grad,
    p_index,
    p_ends,
    p_features_grad,
    num_rows,
    dim,
    per_image,
    stride_b,
    stride_p,
    stride_d,
    SCAN: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Add all rows of a pixel in the program of its first row; other programs do nothing."""
    i_row = tl.program_id(0)
    pixel = tl.load(p_index + i_row)
    first = num_rows - tl.load(p_ends + tl.maximum(pixel, 0) * 2)
    if (pixel >= 0) & (first == i_row):
        end = tl.load(p_ends + pixel * 2 + 1)
        o_channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
        m_channel = o_channel < dim
        b_sum = tl.zeros((CHANNELS,), tl.float32)
        for start in range(i_row, end, SCAN):
            o_scan = start + tl.arange(0, SCAN)
            m_scan = tl.load(p_index + o_scan, mask=o_scan < end, other=-1) == pixel
            if tl.max(m_scan.to(tl.int32), 0) > 0:
                for begin in range(start, tl.minimum(start + SCAN, end), ROWS):
                    o_row = begin + tl.arange(0, ROWS)
                    m_same = tl.load(p_index + o_row, mask=o_row < end, other=-1) == pixel
                    if tl.max(m_same.to(tl.int32), 0) > 0:
                        p_value = p_grad + o_row.to(tl.int64)[:, None] * dim + o_channel[None, :]
                        b_value = tl.load(p_value, mask=m_same[:, None] & m_channel[None, :], other=0)
                        b_sum += tl.sum(b_value.to(tl.float32), 0)
        p_out = p_features_grad + row_offset(pixel.to(tl.int32), per_image, stride_b, stride_p)
        b_out = b_sum.to(p_features_grad.dtype.element_ty)
        tl.store(p_out + o_channel.to(tl.int64) * stride_d, b_out, mask=m_channel)


def gather_pixels(features: Tensor, index: Tensor) -> Tensor:
    """Compute ``reference.gather_pixels``."""
    features, dim, index = _rows.dense(features), features.shape[1], index.contiguous()
    rows = features.new_empty((*index.shape, dim))
    channels = min(CHANNELS, triton.next_power_of_2(dim))
    with guard(features):
        gather_pixels_fwd_kernel[(triton.cdiv(index.numel(), ROWS), triton.cdiv(dim, channels))](
            features,
            index,
            rows,
            index.numel(),
            dim,
            *_rows.rows(features),
            WIDE=_rows.wide(features),
            ROWS=ROWS,
            CHANNELS=channels,
            num_warps=2,
        )
    return rows


def gather_pixels_backward(
    grad: Tensor,
    index: Tensor,
    shape: Sequence[int],
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """Return the gradient of features (B, D, h, w) or (P, D), in the dtype of ``grad`` (…, D)."""
    grad, index, dim = grad.contiguous(), index.contiguous(), shape[1]
    features_grad = torch.empty(tuple(shape), dtype=grad.dtype, device=grad.device, memory_format=memory_format)
    rows, numel = index.numel(), features_grad.numel()
    ends = torch.zeros((numel // dim, 2), dtype=torch.int32, device=grad.device)
    channels = min(CHANNELS, triton.next_power_of_2(dim))
    with guard(grad):
        gather_pixels_link_kernel[(max(triton.cdiv(numel, VALUES), triton.cdiv(rows, LINKS)),)](
            index, ends, features_grad, rows, numel, LINKS=LINKS, VALUES=VALUES, num_warps=4
        )
        gather_pixels_bwd_kernel[(rows, triton.cdiv(dim, channels))](
            grad,
            index,
            ends,
            features_grad,
            rows,
            dim,
            *_rows.rows(features_grad),
            SCAN=SCAN,
            ROWS=ROWS,
            CHANNELS=channels,
            num_warps=2,
        )
    return features_grad
