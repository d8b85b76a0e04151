"""Find negatives and anchors of every class in one pass over the logits, without a sort.

A program holds all classes of a few pixels of one image in registers, as integers in the order of the floats. It finds
the key of the r-th most likely class by moving from one distinct value to the next lower one: r steps of compare,
select and maximum. The work is linear in the number of classes and in r (20 by default). A class is then among the
first r if its key is above that one, or if it is equal and lower classes leave a place. The program stores mask words,
anchor labels and the class counts of its block; the counts are summed afterwards, in integers.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import reference
from . import _launch, _rows
from ._cells import LOG2E
from ._launch import guard
from ._rows import load_across

LOWEST = tl.constexpr(-(2**31))  # below the key of −∞: padding classes of the tile
HIGHEST = tl.constexpr(2**31 - 1)
LANE_KEYS = 32  # keys in the registers of a lane


@triton.jit
def order_key(b_logit):
    """Return int32 in the order of the floats; +0 and −0 are equal, and NaN is highest, as in torch's sort."""
    bits = (b_logit + 0.0).to(tl.int32, bitcast=True)
    bits = bits ^ ((bits >> 31) & HIGHEST)
    return tl.where(b_logit != b_logit, HIGHEST - 1, bits)


@triton.jit
def descend(b_key, b_bound, rank, steps):
    """Return the key of the ``rank``-th highest class, at most ``steps`` distinct keys below ``b_bound``."""
    for _ in range(steps):
        lower = b_key < b_bound[None, :]
        seen = b_key.shape[0] - tl.sum(lower.to(tl.int32), 0)
        b_next = tl.max(tl.where(lower, b_key, LOWEST), 0)
        b_bound = tl.where(seen < rank, b_next, b_bound)
    return b_bound


@triton.jit
def tie_cut(b_key, o_class, b_bound, rank):
    """Return the class below which a key equal to the bound is among the first ``rank``; lower classes win ties."""
    b_room = rank - tl.sum((b_key > b_bound[None, :]).to(tl.int32), 0)
    equal = b_key == b_bound[None, :]
    b_cut = tl.full(b_bound.shape, b_key.shape[0], tl.int32)
    m_tied = tl.sum(equal.to(tl.int32), 0) > b_room
    if tl.max(m_tied.to(tl.int32), 0) > 0:  # find the largest cut that fits the remaining places
        b_cut = tl.where(m_tied, 0, b_cut)
        step = b_key.shape[0] // 2
        while step > 0:
            b_next = b_cut + step
            b_taken = tl.sum((equal & (o_class[:, None] < b_next[None, :])).to(tl.int32), 0)
            b_cut = tl.where(m_tied & (b_taken <= b_room), b_next, b_cut)
            step = step // 2
    return b_cut


@triton.jit
def among_first(b_key, o_class, b_bound, b_cut):
    """Return which classes are above a bound, or equal to it and below its cut."""
    return (b_key > b_bound[None, :]) | ((b_key == b_bound[None, :]) & (o_class[:, None] < b_cut[None, :]))


@triton.jit
def contrast_masks_fwd_kernel(
    p_logits,
    p_label,
    p_reliable,
    p_unreliable,
    p_mask,
    p_anchor_label,
    p_counts,
    p_errors,
    num_classes,
    ignore_index,
    num_words,
    per_image,
    stride_b,
    stride_p,
    stride_c,
    num_labeled,
    low_rank,
    high_rank,
    positive_threshold,
    CLASSES: tl.constexpr,
    WORD: tl.constexpr,
    PIXELS: tl.constexpr,
):
    i_image = tl.program_id(1)
    o_class = tl.arange(0, CLASSES)
    m_class = o_class < num_classes
    o_local = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    m_pixel = o_local < per_image
    o_pixel = i_image.to(tl.int64) * per_image + o_local
    p_image = p_logits + i_image.to(tl.int64) * stride_b
    o_logit = o_class.to(tl.int64)[:, None] * stride_c + o_local.to(tl.int64)[None, :] * stride_p
    b_logit = load_across(p_image, o_logit, m_class[:, None] & m_pixel[None, :], float("-inf")).to(tl.float32)
    b_key = tl.where(m_class[:, None], order_key(b_logit), LOWEST)

    b_label = tl.load(p_label + o_pixel, mask=m_pixel, other=0).to(tl.int64)
    m_kept = m_pixel & (b_label >= 0) & (b_label < num_classes)
    num_bad = tl.sum((m_pixel & ~m_kept & (b_label != ignore_index)).to(tl.int32), 0)
    if num_bad > 0:
        tl.atomic_add(p_errors, num_bad)
    b_class = tl.where(m_kept, b_label, -1).to(tl.int32)
    is_label = o_class[:, None] == b_class[None, :]

    b_max = tl.max(b_logit, 0)
    b_total = tl.sum(tl.exp2((b_logit - b_max[None, :]) * LOG2E), 0)
    b_own = tl.sum(tl.where(is_label, b_logit, 0.0), 0)
    b_probability = tl.exp2((b_own - b_max) * LOG2E) / b_total
    is_anchor = m_kept & (b_probability > positive_threshold)

    labeled = i_image < num_labeled
    m_unreliable = m_pixel
    if not labeled:
        is_anchor &= tl.load(p_reliable + o_pixel, mask=m_pixel, other=0) != 0
        m_unreliable = tl.load(p_unreliable + o_pixel, mask=m_pixel, other=0) != 0
    m_wanted = (labeled & m_kept) | (~labeled & m_unreliable)
    wanted = tl.max(m_wanted.to(tl.int32), 0)  # ranks are needed only if there is such a pixel
    b_low = descend(b_key, tl.full((PIXELS,), HIGHEST, tl.int32), low_rank, low_rank * wanted)
    b_low_cut = tie_cut(b_key, o_class, b_low, low_rank)
    b_high = tl.full((PIXELS,), LOWEST, tl.int32)  # below every class
    b_high_cut = tl.zeros((PIXELS,), tl.int32)
    if ~labeled & (high_rank < num_classes):
        b_high = descend(b_key, b_low, high_rank, (high_rank - low_rank) * wanted)
        b_high_cut = tie_cut(b_key, o_class, b_high, high_rank)
    negative = among_first(b_key, o_class, b_low, b_low_cut) == labeled
    negative &= among_first(b_key, o_class, b_high, b_high_cut) & ~(is_label & labeled)
    negative &= m_class[:, None] & m_wanted[None, :]

    bits = negative.to(tl.int32) << (o_class % WORD)[:, None]
    b_word = tl.sum(tl.reshape(bits, (CLASSES // WORD, WORD, PIXELS)), 1)
    o_word = tl.arange(0, CLASSES // WORD)
    p_word = p_mask + o_pixel[None, :] * num_words + o_word[:, None]
    tl.store(p_word, b_word, mask=(o_word < num_words)[:, None] & m_pixel[None, :])
    tl.store(p_anchor_label + o_pixel, tl.where(is_anchor, b_class, -1).to(tl.int16), mask=m_pixel)

    i_block = i_image.to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
    num_blocks = tl.num_programs(1).to(tl.int64) * tl.num_programs(0)
    p_count = p_counts + i_block * num_classes + o_class
    tl.store(p_count, tl.sum(negative.to(tl.int32), 1).to(tl.uint8), mask=m_class)
    b_anchors = tl.sum((is_label & is_anchor[None, :]).to(tl.int32), 1)
    tl.store(p_count + num_blocks * num_classes, b_anchors.to(tl.uint8), mask=m_class)


def tile(num_classes: int, warp: int) -> tuple[int, int, int]:
    """Return (classes, pixels, warps).

    Pixels lie across the lanes of a warp. Classes lie in the registers of a lane, and across lanes if there are too
    many.
    """
    classes, keys = max(8, triton.next_power_of_2(num_classes)), warp * LANE_KEYS
    return classes, max(1, min(warp, keys // classes)), max(1, classes // keys)


def contrast_masks(
    logits: Tensor,
    label: Tensor,
    reliable: Tensor,
    unreliable: Tensor,
    errors: Tensor,
    *,
    num_labeled: int,
    low_rank: int,
    high_rank: int,
    positive_threshold: float,
    ignore_index: int = 255,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (mask, anchor label, (2, C): keys and anchors), as ``reference.contrast_masks``.

    A label that is not a class is ignored; ``errors`` counts those that are not ``ignore_index`` either.
    """
    logits = _rows.dense(logits)
    batch, num_classes, height, width = logits.shape
    words = reference.mask_words(num_classes)
    classes, pixels, warps = tile(num_classes, _launch.warp_size(logits.device))
    blocks = triton.cdiv(height * width, pixels)
    mask = logits.new_empty((batch * height * width, words), dtype=torch.int32)
    anchor_label = logits.new_empty((batch * height * width,), dtype=torch.int16)
    counts = logits.new_empty((2, batch * blocks, num_classes), dtype=torch.uint8)
    with guard(logits):
        contrast_masks_fwd_kernel[(blocks, batch)](
            logits,
            label.contiguous(),
            reliable.contiguous().view(torch.uint8),
            unreliable.contiguous().view(torch.uint8),
            mask,
            anchor_label,
            counts,
            errors,
            num_classes,
            ignore_index,
            words,
            *_rows.rows(logits),
            num_labeled,
            min(low_rank, num_classes),
            min(high_rank, num_classes),
            positive_threshold,
            CLASSES=classes,
            WORD=min(32, classes),
            PIXELS=pixels,
            num_warps=warps,
        )
    return mask, anchor_label, counts.sum(1)
