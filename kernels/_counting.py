"""Counting and ordering pixels by class, without atomics and without the host.

A pixel's classes come as a mask of words (many classes a pixel) or as a label (one or none). Blocks of ``BLOCK`` pixels
are counted for every class; one running sum over all (class, block) counts, class by class, then says where each block
of each class begins in a stable sort by class. Only integers, so the order of summation does not matter.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._cells import guard

BLOCK = 128  # pixels a program looks at
TILE = tl.constexpr(32)  # classes a program looks at: a word of a mask


class Counts(NamedTuple):
    """Both (C, blocks): keys of a class in a block, int32, and the running sum over the flattened counts, int64."""

    per_block: Tensor
    running: Tensor


@triton.jit
def membership(p_classes, o_pixel, m_pixel, i_tile, num_tiles, IS_MASK: tl.constexpr):
    """(BLOCK, 32) of 0 and 1: which of the 32 classes of a tile each pixel belongs to."""
    o_bit = tl.arange(0, TILE)
    if IS_MASK:
        b_word = tl.load(p_classes + o_pixel.to(tl.int64) * num_tiles + i_tile, mask=m_pixel, other=0)
        b_member = (b_word[:, None] >> o_bit[None, :]) & 1
    else:
        b_label = tl.load(p_classes + o_pixel, mask=m_pixel, other=-1).to(tl.int32)
        b_member = (b_label[:, None] == (i_tile * TILE + o_bit)[None, :]).to(tl.int32)
    return b_member


@triton.jit
def block_counts_kernel(p_classes, p_counts, num_pixels, num_classes, IS_MASK: tl.constexpr, BLOCK: tl.constexpr):
    i_block, i_tile = tl.program_id(0), tl.program_id(1)
    o_pixel = i_block * BLOCK + tl.arange(0, BLOCK)
    b_member = membership(p_classes, o_pixel, o_pixel < num_pixels, i_tile, tl.num_programs(1), IS_MASK)
    o_class = i_tile * TILE + tl.arange(0, TILE)
    p_count = p_counts + o_class.to(tl.int64) * tl.num_programs(0) + i_block
    tl.store(p_count, tl.sum(b_member, 0), mask=o_class < num_classes)


@triton.jit
def class_range(p_running, o_class, m_class, num_blocks):
    """(first, end) of classes in the stable sort by class."""
    p_end = p_running + (o_class.to(tl.int64) + 1) * num_blocks - 1
    b_first = tl.load(p_end - num_blocks, mask=m_class & (o_class > 0), other=0)
    return b_first, tl.load(p_end, mask=m_class, other=0)


@triton.jit
def class_order_kernel(p_label, p_counts, p_running, p_order, num_pixels, num_classes, BLOCK: tl.constexpr):
    i_block, i_tile = tl.program_id(0), tl.program_id(1)
    o_pixel = i_block * BLOCK + tl.arange(0, BLOCK)
    b_member = membership(p_label, o_pixel, o_pixel < num_pixels, i_tile, tl.num_programs(1), False)
    o_class = i_tile * TILE + tl.arange(0, TILE)
    m_class = o_class < num_classes
    o_count = o_class.to(tl.int64) * tl.num_programs(0) + i_block
    b_first = tl.load(p_running + o_count, mask=m_class, other=0) - tl.load(p_counts + o_count, mask=m_class, other=0)
    o_order = b_first[None, :] + tl.cumsum(b_member, 0) - 1
    b_pixel = tl.broadcast_to(o_pixel[:, None], (BLOCK, TILE))
    tl.store(p_order + o_order, b_pixel, mask=(b_member > 0) & m_class[None, :])


def count(classes: Tensor, num_classes: int) -> Counts:
    """``classes``: int32 words (P, ⌈C/32⌉), or labels (P), −1 for none."""
    pixels, blocks, tiles = classes.shape[0], triton.cdiv(classes.shape[0], BLOCK), triton.cdiv(num_classes, TILE.value)
    per_block = classes.new_empty((num_classes, blocks), dtype=torch.int32)
    with guard(classes):
        block_counts_kernel[(blocks, tiles)](
            classes, per_block, pixels, num_classes, IS_MASK=classes.dim() == 2, BLOCK=BLOCK, num_warps=4
        )
    return Counts(per_block, per_block.flatten().cumsum(0, dtype=torch.int64).view_as(per_block))


def class_order(label: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Pixels sorted by class, stable, int32 (P), those of no class left out; and ``Counts.running``."""
    counts = count(label, num_classes)
    blocks = counts.per_block.shape[1]
    order = label.new_empty(label.shape, dtype=torch.int32)
    with guard(label):
        class_order_kernel[(blocks, triton.cdiv(num_classes, TILE.value))](
            label, *counts, order, label.numel(), num_classes, BLOCK=BLOCK, num_warps=4
        )
    return order, counts.running
