"""Sum representations by class: sort pixels by class, divide them into chunks of one class each, add in order.

A class of n pixels has ⌈n / CHUNK⌉ chunks. The first kernel runs one program per chunk and range of channels; the
second adds the chunks of each class. The labels alone determine which pixels each sum adds, so every run gives the same
bits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _counting, _rows
from ._counting import ClassOrder, class_range
from ._launch import guard
from ._rows import load_across, row_offset

CHUNK = 512  # pixels per partial sum
PIXELS = 64  # pixels that a program reads at once
CHANNELS = 32  # channels per program
PARTIALS = 64  # partial sums added at once


@triton.jit
def class_chunks(p_first, p_total, num_classes, CLASSES: tl.constexpr, CHUNK: tl.constexpr):
    """Return number, first pixel, end in the order, first chunk and end of all classes."""
    o_class = tl.arange(0, CLASSES)
    b_first, b_end = class_range(p_first, p_total, o_class, o_class < num_classes)
    b_chunks = (b_end - b_first + CHUNK - 1) // CHUNK
    b_chunk_end = tl.cumsum(b_chunks, 0)
    return o_class, b_first, b_end, b_chunk_end - b_chunks, b_chunk_end


@triton.jit
def pick(b_values, m_chosen):
    """Return the one element where ``m_chosen`` is true."""
    return tl.sum(tl.where(m_chosen, b_values, 0), 0)


@triton.jit
def class_sum_fwd_kernel(
    p_features,
    p_order,
    p_first,
    p_total,
    p_partial,
    num_classes,
    dim,
    per_image,
    stride_b,
    stride_p,
    stride_d,
    WIDE: tl.constexpr,
    CLASSES: tl.constexpr,
    CHUNK: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    i_chunk = tl.program_id(0)
    _, b_first, b_end, b_chunk, b_chunk_end = class_chunks(p_first, p_total, num_classes, CLASSES, CHUNK)
    m_chosen = (b_chunk <= i_chunk) & (i_chunk < b_chunk_end)
    first = pick(b_first + (i_chunk - b_chunk) * CHUNK, m_chosen)
    end = tl.minimum(first + CHUNK, pick(b_end, m_chosen))  # first and end are both 0 if the chunk does not exist
    o_channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    m_channel = o_channel < dim
    b_sum = tl.zeros((CHANNELS, PIXELS), tl.float32)
    for start in range(first, end, PIXELS):
        o_order = start + tl.arange(0, PIXELS)
        m_order = o_order < end
        o_pixel = tl.load(p_order + o_order, mask=m_order, other=0)
        o_value = (
            row_offset(o_pixel, per_image, stride_b, stride_p)[None, :] + o_channel.to(tl.int64)[:, None] * stride_d
        )
        m_value = m_channel[:, None] & m_order[None, :]
        if WIDE:
            b_value = tl.load(p_features + o_value, mask=m_value, other=0)
        else:  # sorted pixels of a class are often neighbors; their channels are a plane apart
            b_value = load_across(p_features, o_value, m_value, 0)
        b_sum += b_value.to(tl.float32)
    if end > first:
        tl.store(p_partial + i_chunk.to(tl.int64) * dim + o_channel, tl.sum(b_sum, 1), mask=m_channel)


@triton.jit
def class_sum_merge_kernel(
    p_partial,
    p_first,
    p_total,
    p_sum,
    num_classes,
    dim,
    CLASSES: tl.constexpr,
    CHUNK: tl.constexpr,
    PARTIALS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    i_class = tl.program_id(0)
    o_class, _, _, b_chunk, b_chunk_end = class_chunks(p_first, p_total, num_classes, CLASSES, CHUNK)
    first, end = pick(b_chunk, o_class == i_class), pick(b_chunk_end, o_class == i_class)
    o_channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    m_channel = o_channel < dim
    b_sum = tl.zeros((PARTIALS, CHANNELS), tl.float32)
    for start in range(first, end, PARTIALS):
        o_chunk = start + tl.arange(0, PARTIALS)
        p_value = p_partial + o_chunk.to(tl.int64)[:, None] * dim + o_channel[None, :]
        b_sum += tl.load(p_value, mask=(o_chunk < end)[:, None] & m_channel[None, :], other=0)
    tl.store(p_sum + i_class.to(tl.int64) * dim + o_channel, tl.sum(b_sum, 0), mask=m_channel)


def class_sum(features: Tensor, anchor_label: Tensor, num_classes: int) -> Tensor:
    """Compute ``reference.class_sum``."""
    return class_sum_in_order(features, _counting.class_order(anchor_label.contiguous(), num_classes))


def class_sum_in_order(features: Tensor, pixels: ClassOrder) -> Tensor:
    """Compute ``class_sum`` of sorted pixels."""
    features, dim = _rows.dense(features), features.shape[1]
    num_classes = pixels.total.numel()
    chunks = triton.cdiv(pixels.order.numel(), CHUNK) + num_classes  # upper bound of the number of chunks
    partial = features.new_empty((chunks, dim), dtype=torch.float32)
    total = features.new_empty((num_classes, dim), dtype=torch.float32)
    groups, classes = triton.cdiv(dim, CHANNELS), triton.next_power_of_2(num_classes)
    with guard(features):
        class_sum_fwd_kernel[(chunks, groups)](
            features,
            *pixels,
            partial,
            num_classes,
            dim,
            *_rows.rows(features),
            WIDE=_rows.wide(features),
            CLASSES=classes,
            CHUNK=CHUNK,
            PIXELS=PIXELS,
            CHANNELS=CHANNELS,
            num_warps=2,
        )
        class_sum_merge_kernel[(num_classes, groups)](
            partial,
            pixels.first,
            pixels.total,
            total,
            num_classes,
            dim,
            CLASSES=classes,
            CHUNK=CHUNK,
            PARTIALS=PARTIALS,
            CHANNELS=CHANNELS,
            num_warps=2,
        )
    return total
