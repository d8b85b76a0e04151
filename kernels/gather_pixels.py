"""Rows of a feature map at given pixels, and the way back: a sum of the gradients of each pixel in a fixed order."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _rows
from ._cells import guard
from ._rows import load_across, row_offset

ROWS = 8  # rows read at once
CHANNELS = 256  # of a program, at most


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
    p_row = p_features + row_offset(tl.maximum(o_pixel, 0), per_image, stride_b, stride_p)
    p_value = p_row[:, None] + o_channel.to(tl.int64)[None, :] * stride_d
    m_read = m_value & (o_pixel >= 0)[:, None]
    if WIDE:
        b_value = tl.load(p_value, mask=m_read, other=0)
    else:  # as they are stored: nothing that is read lies together
        b_value = load_across(p_value, m_read, 0)
    tl.store(p_rows + o_row[:, None] * dim + o_channel[None, :], b_value, mask=m_value)


@triton.jit
def gather_pixels_bwd_kernel(
    p_grad,
    p_sorted,
    p_source,
    p_features_grad,
    num_rows,
    dim,
    per_image,
    stride_b,
    stride_p,
    stride_d,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """The program at the first of a pixel's rows adds them all; the others have nothing to do."""
    i_row = tl.program_id(0)
    pixel = tl.load(p_sorted + i_row)
    before = tl.load(p_sorted + i_row - 1, mask=i_row > 0, other=-1)
    if (pixel >= 0) & (pixel != before):
        o_channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
        m_channel = o_channel < dim
        b_sum = tl.zeros((CHANNELS,), tl.float32)
        start = i_row
        more = True
        while more:
            o_row = start + tl.arange(0, ROWS)
            m_row = o_row < num_rows
            m_same = tl.load(p_sorted + o_row, mask=m_row, other=-1) == pixel
            o_source = tl.load(p_source + o_row, mask=m_same, other=0)
            p_value = p_grad + o_source[:, None] * dim + o_channel[None, :]
            b_value = tl.load(p_value, mask=m_same[:, None] & m_channel[None, :], other=0)
            b_sum += tl.sum(b_value.to(tl.float32), 0)
            start += ROWS
            more = tl.min(m_same.to(tl.int32), 0) > 0
        p_out = p_features_grad + row_offset(pixel.to(tl.int32), per_image, stride_b, stride_p)
        b_out = b_sum.to(p_features_grad.dtype.element_ty)
        tl.store(p_out + o_channel.to(tl.int64) * stride_d, b_out, mask=m_channel)


def gather_pixels(features: Tensor, index: Tensor) -> Tensor:
    """As ``reference.gather_pixels``."""
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
    """Gradient of the features, (B, D, h, w) or (R, D), in the dtype of ``grad`` (…, D): each pixel's rows added up.

    A stable sort brings the rows of a pixel together in the order of ``index``, so the sum's order is fixed.
    """
    grad, dim = grad.contiguous(), shape[1]
    features_grad = torch.empty(tuple(shape), dtype=grad.dtype, device=grad.device, memory_format=memory_format)
    features_grad.zero_()
    in_order, source = index.flatten().sort(stable=True)
    channels = min(CHANNELS, triton.next_power_of_2(dim))
    with guard(grad):
        gather_pixels_bwd_kernel[(index.numel(), triton.cdiv(dim, channels))](
            grad,
            in_order,
            source,
            features_grad,
            index.numel(),
            dim,
            *_rows.rows(features_grad),
            ROWS=ROWS,
            CHANNELS=channels,
            num_warps=2,
        )
    return features_grad
