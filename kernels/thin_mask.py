"""Thin the keys of a class evenly, in integers: count keys in blocks, sum the counts, then process each block.

⌊((r+1)k+v)/n⌋ > ⌊(rk+v)/n⌋ is equivalent to ((rk+v) mod n) + k ≥ n, since k ≤ n: one remainder per key. A block
computes the remainder at its first key in 64 bits. From there, a key of local rank j needs (remainder + j·k) mod n.
This number is so small that the compiler's 64-bit division takes its fast path, the 32-bit division of the hardware.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _counting
from ._counting import BLOCK, TILE, membership
from ._launch import guard


@triton.jit
def thin_mask_fwd_kernel(
    p_mask,
    p_max_keys,
    p_draw,
    p_before,
    p_total,
    p_thinned,
    num_pixels,
    num_classes,
    BLOCK: tl.constexpr,
):
    i_block, i_tile = tl.program_id(0), tl.program_id(1)
    num_blocks, num_tiles = tl.num_programs(0), tl.num_programs(1)
    o_pixel = i_block * BLOCK + tl.arange(0, BLOCK)
    m_pixel = o_pixel < num_pixels
    b_member = membership(p_mask, o_pixel, m_pixel, i_tile, num_tiles, True)
    o_bit = tl.arange(0, TILE)
    o_class = i_tile * TILE + o_bit
    m_class = o_class < num_classes

    o_count = o_class.to(tl.int64) * num_blocks + i_block
    b_before = tl.load(p_before + o_count, mask=m_class, other=0).to(tl.int64)  # rank of the block's first key
    b_total = tl.load(p_total + o_class, mask=m_class, other=0).to(tl.int64)
    b_limit = tl.load(p_max_keys + o_class, mask=m_class, other=0)
    b_keep = tl.where(b_limit > 0, tl.minimum(b_limit, b_total), b_total)
    b_shift = (tl.load(p_draw + o_class, mask=m_class, other=0) * b_total) >> 32
    b_modulus = tl.maximum(b_total, 1)
    b_start = (b_before * b_keep + b_shift) % b_modulus

    b_rank = tl.cumsum(b_member, 0) - b_member
    b_remainder = (b_start[None, :] + b_rank * b_keep[None, :]) % b_modulus[None, :]
    m_kept = (b_member > 0) & (b_remainder + b_keep[None, :] >= b_total[None, :])
    b_word = tl.sum(m_kept.to(tl.int32) << o_bit[None, :], 1)
    tl.store(p_thinned + o_pixel.to(tl.int64) * num_tiles + i_tile, b_word, mask=m_pixel)


def thin_mask(mask: Tensor, max_keys: Tensor, draw: Tensor) -> Tensor:
    """Compute ``reference.thin_mask``."""
    num_classes = max_keys.numel()
    mask = mask.contiguous()
    counts = _counting.count(mask, num_classes)
    thinned = torch.empty_like(mask)
    with guard(mask):
        thin_mask_fwd_kernel[(counts.before.shape[1], mask.shape[1])](
            mask,
            max_keys.contiguous(),
            draw.contiguous(),
            *counts,
            thinned,
            mask.shape[0],
            num_classes,
            BLOCK=BLOCK,
            num_warps=4,
        )
    return thinned
