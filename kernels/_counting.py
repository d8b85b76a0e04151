"""Count and sort pixels by class, without atomics and without the host.

The classes of a pixel come as a mask of words (any number of classes) or as a label (at most one). The first kernel
counts the pixels of every class in blocks of ``BLOCK``. A running sum over the blocks of each class then gives the
number of its pixels before each block; with the totals of the classes, it gives their start in a stable sort by class.
All values are integers, so the order of summation does not matter.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import guard

BLOCK = 128  # pixels per program
TILE = tl.constexpr(32)  # classes per program: one word of a mask
BLOCKS = 1024  # counts that a program sums at once


class Counts(NamedTuple):
    """Hold counts, int32: pixels of each class before each block (C, blocks), and pixels of each class (C)."""

    before: Tensor
    total: Tensor


class ClassOrder(NamedTuple):
    """Hold pixels sorted by class, int32.

    ``order`` (P) holds the pixels in a stable sort, without those of no class; the other two (C) hold the start of each
    class in it and its number of pixels.
    """

    order: Tensor
    first: Tensor
    total: Tensor


@triton.jit
def membership(p_classes, o_pixel, m_pixel, i_tile, num_tiles, IS_MASK: tl.constexpr):
    """Return (BLOCK, 32) of 0 and 1: the membership of each pixel in the 32 classes of a tile."""
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
def running_counts_kernel(p_counts, p_total, num_blocks, BLOCKS: tl.constexpr):
    """Replace the count of each block by the sum of the counts before it; one class per program."""
    i_class = tl.program_id(0)
    p_row = p_counts + i_class.to(tl.int64) * num_blocks
    total = 0
    for start in range(0, num_blocks, BLOCKS):
        o_block = start + tl.arange(0, BLOCKS)
        b_count = tl.load(p_row + o_block, mask=o_block < num_blocks, other=0)
        tl.store(p_row + o_block, total + tl.cumsum(b_count, 0) - b_count, mask=o_block < num_blocks)
        total += tl.sum(b_count, 0)
    tl.store(p_total + i_class, total)


@triton.jit
def class_range(p_first, p_total, o_class, m_class):
    """Return (first, end) of classes in the stable sort by class."""
    b_first = tl.load(p_first + o_class, mask=m_class, other=0)
    return b_first, b_first + tl.load(p_total + o_class, mask=m_class, other=0)


@triton.jit
def class_order_kernel(p_label, p_before, p_total, p_order, p_first, num_pixels, num_classes, BLOCK: tl.constexpr):
    i_block, i_tile = tl.program_id(0), tl.program_id(1)
    o_pixel = i_block * BLOCK + tl.arange(0, BLOCK)
    b_member = membership(p_label, o_pixel, o_pixel < num_pixels, i_tile, tl.num_programs(1), False)
    o_bit = tl.arange(0, TILE)
    b_lower = tl.zeros((TILE,), tl.int32)
    for tile in range(i_tile):
        b_lower += tl.load(p_total + tile * TILE + o_bit)
    o_class = i_tile * TILE + o_bit
    m_class = o_class < num_classes
    b_total = tl.load(p_total + o_class, mask=m_class, other=0)
    b_first = tl.sum(b_lower, 0) + tl.cumsum(b_total, 0) - b_total
    if i_block == 0:
        tl.store(p_first + o_class, b_first, mask=m_class)
    b_first += tl.load(p_before + o_class.to(tl.int64) * tl.num_programs(0) + i_block, mask=m_class, other=0)
    o_order = b_first[None, :] + tl.cumsum(b_member, 0) - 1
    b_pixel = tl.broadcast_to(o_pixel[:, None], (BLOCK, TILE))
    tl.store(p_order + o_order, b_pixel, mask=(b_member > 0) & m_class[None, :])


def count(classes: Tensor, num_classes: int) -> Counts:
    """Count pixels by ``classes``: int32 words (P, ⌈C/32⌉), or labels (P), −1 for none."""
    pixels, blocks, tiles = classes.shape[0], triton.cdiv(classes.shape[0], BLOCK), triton.cdiv(num_classes, TILE.value)
    counts = classes.new_empty((num_classes, blocks), dtype=torch.int32)
    total = classes.new_empty((num_classes,), dtype=torch.int32)
    with guard(classes):
        block_counts_kernel[(blocks, tiles)](
            classes, counts, pixels, num_classes, IS_MASK=classes.dim() == 2, BLOCK=BLOCK, num_warps=4
        )
        running_counts_kernel[(num_classes,)](counts, total, blocks, BLOCKS=BLOCKS, num_warps=4)
    return Counts(counts, total)


def class_order(label: Tensor, num_classes: int) -> ClassOrder:
    """Sort pixels by ``label`` (P), −1 for none."""
    counts = count(label, num_classes)
    blocks = counts.before.shape[1]
    order = label.new_empty(label.shape, dtype=torch.int32)
    first = torch.empty_like(counts.total)
    with guard(label):
        class_order_kernel[(blocks, triton.cdiv(num_classes, TILE.value))](
            label, *counts, order, first, label.numel(), num_classes, BLOCK=BLOCK, num_warps=4
        )
    return ClassOrder(order, first, counts.total)
