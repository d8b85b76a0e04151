"""Append keys to a ring per class: count keys in blocks, sum the counts, compute slots, write tiles of pixels.

The minimal traffic is: the row of each pixel with a kept key read once (D features), each kept key written once (D
elements of the bank), and the mask read once (4 bytes per pixel and word). A program of ``ring_push_write_kernel``
holds the normalized rows of its pixels in registers and stores them in rounds, each pixel to the next of its classes,
so that most lanes of a round have a row to write. Beyond the minimum, the kernels read the mask a second time, move
some 50 bytes of counts per class and block of 128 pixels, and, for planes, read the pixels next to the wanted ones.
With 21 classes this is less than 1 % of the traffic of the rows.

The keys of a push are numbered within their class. ``kept_from`` is the number of the oldest kept key and ``position``
its slot, which needs one 64-bit modulo per class. The slot of any other kept key is higher by the difference of their
numbers, and wraps around at the end of the ring.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _counting, _rows
from ._counting import BLOCK, TILE, membership
from ._launch import guard

ELEMENTS = 8192  # elements of the rows that a program holds
PIXELS = 32  # pixels per program, at most
EARLIER = tl.constexpr(32)  # pixels of a block before the program's own, counted at once
EPS = tl.constexpr(1e-12)


@triton.jit
def ring_push_advance_kernel(
    p_offsets, p_pushed, p_gate, p_total, p_kept_from, p_position, num_classes, HAS_GATE: tl.constexpr
):
    """Compute the slot of the oldest kept key of each class, and advance the counter of the class."""
    o_class = tl.program_id(0) * TILE + tl.arange(0, TILE)
    m_class = o_class < num_classes
    b_keys = tl.load(p_total + o_class, mask=m_class, other=0).to(tl.int64)
    b_offset = tl.load(p_offsets + o_class, mask=m_class, other=0)
    b_capacity = tl.load(p_offsets + o_class + 1, mask=m_class, other=0) - b_offset
    b_pushed = tl.load(p_pushed + o_class, mask=m_class, other=0)
    b_kept_from = tl.maximum(b_keys - b_capacity, 0)
    b_start = (b_pushed + b_kept_from) % tl.maximum(b_capacity, 1)
    if HAS_GATE:
        m_open = tl.load(p_gate) != 0
        b_kept_from = tl.where(m_open, b_kept_from, b_keys)
        b_keys = tl.where(m_open, b_keys, 0)
    tl.store(p_kept_from + o_class, b_kept_from.to(tl.int32), mask=m_class)
    tl.store(p_position + o_class, b_offset + b_start, mask=m_class)
    tl.store(p_pushed + o_class, b_pushed + b_keys, mask=m_class)


@triton.jit
def wanted_words(
    p_mask, p_before, p_total, p_kept_from, o_pixel, m_pixel, i_block, num_blocks, i_tile, num_tiles, num_classes
):
    """Return words of the mask, without classes of which the block has no kept key."""
    o_bit = tl.arange(0, TILE)
    o_class = i_tile * TILE + o_bit
    m_class = o_class < num_classes
    b_end = tl.load(p_total + o_class, mask=m_class, other=0)
    if i_block + 1 < num_blocks:
        b_end = tl.load(p_before + o_class.to(tl.int64) * num_blocks + i_block + 1, mask=m_class, other=0)
    m_open = b_end > tl.load(p_kept_from + o_class, mask=m_class, other=0)
    b_word = tl.load(p_mask + o_pixel.to(tl.int64) * num_tiles + i_tile, mask=m_pixel, other=0)
    return b_word & tl.sum(m_open.to(tl.int32) << o_bit, 0)


@triton.jit
def kept_slots(
    p_mask, p_before, p_kept_from, p_position, p_offsets, b_word, first, i_block, num_blocks, i_tile, num_tiles,
    num_classes, BLOCK: tl.constexpr,
):  # fmt: skip
    """Return the slot of each key (PIXELS, 32), and for each pixel the word of the kept keys."""
    o_bit = tl.arange(0, TILE)
    o_class = i_tile * TILE + o_bit
    m_class = o_class < num_classes
    b_age = tl.load(p_before + o_class.to(tl.int64) * num_blocks + i_block, mask=m_class, other=0)
    b_age -= tl.load(p_kept_from + o_class, mask=m_class, other=0)
    for start in range(i_block * BLOCK, first, EARLIER):
        o_earlier = start + tl.arange(0, EARLIER)
        b_age += tl.sum(membership(p_mask, o_earlier, o_earlier < first, i_tile, num_tiles, True), 0)

    b_member = (b_word[:, None] >> o_bit[None, :]) & 1
    b_age = b_age[None, :] + tl.cumsum(b_member, 0) - b_member  # number of the key, minus that of the oldest kept key
    b_end = tl.load(p_offsets + o_class + 1, mask=m_class, other=0)
    b_capacity = (b_end - tl.load(p_offsets + o_class, mask=m_class, other=0)).to(tl.int32)
    b_room = (b_end - tl.load(p_position + o_class, mask=m_class, other=0)).to(tl.int32)  # up to the ring's end
    b_slot = (b_end.to(tl.int32) - b_room)[None, :] + b_age
    b_slot -= tl.where(b_age >= b_room[None, :], b_capacity[None, :], 0)
    m_kept = (b_member > 0) & (b_age >= 0)
    return b_slot, tl.sum(m_kept.to(tl.int32) << o_bit[None, :], 1)


@triton.jit
def ring_push_write_kernel(
    p_bank,
    p_offsets,
    p_features,
    p_mask,
    p_before,
    p_total,
    p_kept_from,
    p_position,
    num_parts,
    num_blocks,
    num_classes,
    num_tiles,
    dim,
    per_image,
    stride_b,
    stride_p,
    stride_d,
    PLANES: tl.constexpr,
    BLOCK: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    # Unlabeled images come last and have the most keys per pixel: start their programs first.
    i_part = tl.num_programs(0) - 1 - tl.program_id(0)
    i_image = i_part // num_parts
    first_in_image = (i_part - i_image * num_parts) * PIXELS
    o_in_image = first_in_image + tl.arange(0, PIXELS)
    m_pixel = o_in_image < per_image
    first = i_image * per_image + first_in_image
    o_pixel = first + tl.arange(0, PIXELS)
    i_block = first // BLOCK
    i_last_block = (first + tl.minimum(PIXELS, per_image - first_in_image) - 1) // BLOCK
    b_wanted = tl.zeros((PIXELS,), tl.int32)
    for i_tile in range(num_tiles):
        b_wanted |= wanted_words(
            p_mask, p_before, p_total, p_kept_from, o_pixel, m_pixel, i_last_block, num_blocks, i_tile, num_tiles,
            num_classes,
        )  # fmt: skip
    m_wanted = b_wanted != 0
    if tl.max(m_wanted.to(tl.int32), 0) > 0:
        o_channel = tl.arange(0, CHANNELS)
        m_channel = o_channel < dim
        p_key = p_features + i_image.to(tl.int64) * stride_b + o_in_image.to(tl.int64)[None, :] * stride_p
        p_key += o_channel.to(tl.int64)[:, None] * stride_d
        m_read = m_pixel if PLANES else m_wanted  # in a plane, neighbors share the memory transaction of a pixel
        b_key = tl.load(p_key, mask=m_channel[:, None] & m_read[None, :], other=0).to(tl.float32)
        b_norm = tl.maximum(tl.sqrt_rn(tl.sum(b_key * b_key, 0)), EPS, propagate_nan=tl.PropagateNan.ALL)
        b_key = (b_key * (1 / b_norm)[None, :]).to(p_bank.dtype.element_ty)
        for i_tile in range(num_tiles):
            b_word = wanted_words(
                p_mask, p_before, p_total, p_kept_from, o_pixel, m_pixel, i_last_block, num_blocks, i_tile, num_tiles,
                num_classes,
            )  # fmt: skip
            if tl.max((b_word != 0).to(tl.int32), 0) > 0:
                b_slot, b_left = kept_slots(
                    p_mask, p_before, p_kept_from, p_position, p_offsets, b_word, first, i_block, num_blocks, i_tile,
                    num_tiles, num_classes, BLOCK,
                )  # fmt: skip
                while tl.max((b_left != 0).to(tl.int32), 0) > 0:
                    b_bit = b_left & -b_left  # next class of each pixel that has one left
                    m_bit = b_bit[:, None] == (1 << tl.arange(0, TILE))[None, :]
                    o_slot = tl.sum(tl.where(m_bit, b_slot, 0), 1).to(tl.int64)
                    p_out = p_bank + o_slot[None, :] * dim + o_channel[:, None]
                    tl.store(p_out, b_key, mask=m_channel[:, None] & (b_left != 0)[None, :])
                    b_left &= b_left - 1


def ring_push(
    bank: Tensor,
    offsets: Tensor,
    pushed: Tensor,
    features: Tensor,
    mask: Tensor,
    *,
    gate: Tensor | None = None,
) -> None:
    """Compute ``reference.ring_push``."""
    if bank.shape[0] >= 2**31:
        raise ValueError(f"bank: the triton kernel takes fewer than 2³¹ slots, got {bank.shape[0]}")
    features, offsets, mask = _rows.dense(features), offsets.contiguous(), mask.contiguous()
    num_pixels, num_tiles = mask.shape
    num_classes, dim = pushed.numel(), bank.shape[1]
    counts = _counting.count(mask, num_classes)
    num_blocks = counts.before.shape[1]
    kept_from, position = torch.empty_like(counts.total), torch.empty_like(pushed)
    channels = triton.next_power_of_2(dim)
    pixels = min(PIXELS, max(1, ELEMENTS // channels))
    strides = _rows.rows(features)
    num_parts = triton.cdiv(strides.per_image, pixels)
    with guard(bank):
        ring_push_advance_kernel[(triton.cdiv(num_classes, TILE.value),)](
            offsets,
            pushed,
            mask if gate is None else gate.view(torch.uint8),
            counts.total,
            kept_from,
            position,
            num_classes,
            HAS_GATE=gate is not None,
            num_warps=1,
        )
        ring_push_write_kernel[(num_pixels // strides.per_image * num_parts,)](
            bank,
            offsets,
            features,
            mask,
            *counts,
            kept_from,
            position,
            num_parts,
            num_blocks,
            num_classes,
            num_tiles,
            dim,
            *strides,
            PLANES=strides.stride_d != 1,
            BLOCK=BLOCK,
            PIXELS=pixels,
            CHANNELS=channels,
            num_warps=8,
        )
