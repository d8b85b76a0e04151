"""Select exactly by radix: four passes over order-preserving 32-bit keys, eight bits each, without host sync.

A pass counts, per digit, the keys that begin with the digits found so far, for the lower and the upper neighbor of the
wanted position at once. The last program to finish then selects the digit of each neighbor. Counts are integers, so the
order of addition does not matter. With several processes, the counts are all-reduced first, and a separate launch
selects. Digits have eight bits, not eleven, since the cost of ``tl.histogram`` grows with its bins, and four cheap
passes read from L2.
"""

import functools
from collections.abc import Callable

import torch
import torch.distributed as dist
import triton
import triton.language as tl
from torch import Tensor

from ._launch import guard

BITS = tl.constexpr(8)
BINS = tl.constexpr(256)
LEVELS = 4
BLOCK = 1024
PROGRAMS = 264  # two per multiprocessor of 132; more would only add atomics when counts merge
NUM_WARPS = 4


@triton.jit
def order_preserving_key(b_x):
    """Return uint32 in the order of the floats; every NaN becomes the largest key."""
    bits = b_x.to(tl.int32, bitcast=True)
    key = (bits ^ ((bits >> 31) | -2147483648)).to(tl.uint32, bitcast=True)
    return tl.where(b_x == b_x, key, 0xFFFFFFFF).to(tl.uint32)


@triton.jit
def key_to_float(key):
    bits = key.to(tl.uint32).to(tl.int32, bitcast=True)
    bits = tl.where(bits < 0, bits ^ -2147483648, ~bits)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def descend(p_count, prefix, rank, BITS: tl.constexpr, BINS: tl.constexpr):
    """Extend a prefix by the digit of the key of this rank, and make the rank relative to that digit."""
    o_bin = tl.arange(0, BINS)
    count = tl.load(p_count + o_bin).to(tl.int64)
    digit = tl.minimum(tl.sum((tl.cumsum(count, 0) <= rank).to(tl.int64)), BINS - 1)
    rank -= tl.sum(tl.where(o_bin < digit, count, 0))
    return (prefix << BITS) | digit, rank


@triton.jit
def masked_quantile_select_kernel(
    p_count,
    p_state,
    p_q,
    p_result,
    k,
    LEVEL: tl.constexpr,
    LAST: tl.constexpr,
    SMALLEST: tl.constexpr,
    BITS: tl.constexpr,
    BINS: tl.constexpr,
):
    """Select one digit for both neighbors; after the last digit, store the result.

    With ``SMALLEST``, the result is the min(k, n)-th smallest, or 0 if there is none, in place of the quantile q. state
    = (lower prefix, rank, upper prefix, rank, n, number of NaN, programs that have counted).
    """
    if LEVEL == 0:
        count = tl.sum(tl.load(p_count + tl.arange(0, BINS)).to(tl.int64))
        num_nan = tl.load(p_count + BINS).to(tl.int64)
        if SMALLEST:
            low_rank = tl.maximum(tl.minimum(count, k) - 1, 0)
            high_rank = low_rank
        else:
            low_rank = tl.floor(tl.load(p_q) * tl.maximum(count - 1, 0).to(tl.float64)).to(tl.int64)
            high_rank = tl.minimum(low_rank + 1, tl.maximum(count - 1, 0))
        low_prefix = tl.zeros((), tl.int64)
        high_prefix = low_prefix
        tl.store(p_state + 4, count)
        tl.store(p_state + 5, num_nan)
    else:
        low_prefix = tl.load(p_state + 0)
        low_rank = tl.load(p_state + 1)
        high_prefix = tl.load(p_state + 2)
        high_rank = tl.load(p_state + 3)
        count = tl.load(p_state + 4)
        num_nan = tl.load(p_state + 5)
    apart = (low_prefix != high_prefix).to(tl.int32)
    low_prefix, low_rank = descend(p_count, low_prefix, low_rank, BITS, BINS)
    high_prefix, high_rank = descend(p_count + apart * BINS, high_prefix, high_rank, BITS, BINS)
    if LAST:
        low = key_to_float(low_prefix)
        if SMALLEST:
            tl.store(p_result, tl.where(tl.minimum(count, k) > 0, low, 0.0))
        else:
            high = key_to_float(high_prefix)
            position = tl.load(p_q) * tl.maximum(count - 1, 0).to(tl.float64)
            fraction = position - tl.floor(position)
            span = high.to(tl.float64) - low.to(tl.float64)
            from_low = low.to(tl.float64) + fraction * span
            from_high = high.to(tl.float64) - (1 - fraction) * span
            value = tl.where(fraction < 0.5, from_low, from_high).to(tl.float32)
            value = tl.where(low == high, low, value)
            tl.store(p_result, tl.where((count == 0) | (num_nan > 0), float("nan"), value))
    else:
        tl.store(p_state + 0, low_prefix)
        tl.store(p_state + 1, low_rank)
        tl.store(p_state + 2, high_prefix)
        tl.store(p_state + 3, high_rank)


@triton.jit
def masked_quantile_count_kernel(
    p_x,
    p_mask,
    p_state,
    p_count,
    p_q,
    p_result,
    numel,
    k,
    LEVEL: tl.constexpr,
    LAST: tl.constexpr,
    NONNEGATIVE: tl.constexpr,
    SMALLEST: tl.constexpr,
    SELECT: tl.constexpr,
    BLOCK: tl.constexpr,
    BITS: tl.constexpr,
    BINS: tl.constexpr,
):
    """Add the digits of the keys that match the lower and upper prefix to count[0] and count[1].

    At level 0, count[1, 0] counts NaN. With ``NONNEGATIVE``, there is no mask, and negative elements are skipped. With
    ``SELECT``, the last program continues with ``masked_quantile_select_kernel``.
    """
    SHIFT: tl.constexpr = 32 - BITS * (LEVEL + 1)
    low_prefix = tl.load(p_state + 0)
    high_prefix = tl.load(p_state + 2)
    b_low = tl.zeros((BINS,), tl.int32)
    b_high = tl.zeros((BINS,), tl.int32)
    num_nan = 0
    for i_block in range(tl.program_id(0), tl.cdiv(numel, BLOCK), tl.num_programs(0)):
        o_x = i_block * BLOCK + tl.arange(0, BLOCK)  # fits int32: at most 2³⁰ elements
        m_x = o_x < numel
        b_x = tl.load(p_x + o_x, mask=m_x, other=0).to(tl.float32)
        if NONNEGATIVE:
            m_x = m_x & (b_x >= 0)
        else:
            m_x = m_x & (tl.load(p_mask + o_x, mask=m_x, other=0) != 0)
        key = order_preserving_key(b_x)
        digit = ((key >> SHIFT) & (BINS - 1)).to(tl.int32)
        if LEVEL == 0:
            b_low += tl.histogram(digit, BINS, mask=m_x)
            num_nan += tl.sum((m_x & (b_x != b_x)).to(tl.int32))
        else:
            prefix = (key >> (SHIFT + BITS)).to(tl.int64)
            b_low += tl.histogram(digit, BINS, mask=m_x & (prefix == low_prefix))
            if high_prefix != low_prefix:
                b_high += tl.histogram(digit, BINS, mask=m_x & (prefix == high_prefix))
    o_bin = tl.arange(0, BINS)
    tl.atomic_add(p_count + o_bin, b_low, mask=b_low > 0)
    if LEVEL == 0:
        if num_nan > 0:
            tl.atomic_add(p_count + BINS, num_nan)
    elif high_prefix != low_prefix:
        tl.atomic_add(p_count + BINS + o_bin, b_high, mask=b_high > 0)
    if SELECT:
        tl.debug_barrier()  # wait until every lane has counted
        counted = tl.atomic_add(p_state + 6, 1, sem="acq_rel", scope="gpu")
        if counted == (LEVEL + 1) * tl.num_programs(0) - 1:
            masked_quantile_select_kernel(p_count, p_state, p_q, p_result, k, LEVEL, LAST, SMALLEST, BITS, BINS)


def select(
    x: Tensor, mask: Tensor | None, q: Tensor | None, k: int, all_reduce: Callable[[Tensor], object] | None = None
) -> Tensor:
    """Return the q-quantile of ``x[mask]``; without mask and q, the min(k, n)-th smallest of the n elements ≥ 0.

    ``all_reduce`` sums the counts of all processes, in place.
    """
    if x.numel() > 2**30:
        raise ValueError(f"x: the triton backend takes up to 2**30 elements, got {x.numel()}")
    bins = 2 * BINS.value
    memory = torch.zeros(LEVELS * bins // 2 + 7, dtype=torch.int64, device=x.device)
    counts, state = memory[:-7].view(torch.int32).view(LEVELS, bins), memory[-7:]
    result = torch.empty((), dtype=torch.float32, device=x.device)
    programs = min(PROGRAMS, triton.cdiv(x.numel(), BLOCK))
    for level in range(LEVELS):
        of_level = {
            "LEVEL": level,
            "LAST": level == LEVELS - 1,
            "SMALLEST": q is None,
            "BITS": BITS.value,
            "BINS": BINS.value,
            "num_warps": NUM_WARPS,
        }
        with guard(x):
            masked_quantile_count_kernel[(programs,)](
                x,
                x if mask is None else mask.view(torch.uint8),
                state,
                counts[level],
                result if q is None else q,
                result,
                x.numel(),
                k,
                NONNEGATIVE=mask is None,
                SELECT=all_reduce is None,
                BLOCK=BLOCK,
                **of_level,
            )
            if all_reduce is not None:
                all_reduce(counts[level])
                masked_quantile_select_kernel[(1,)](
                    counts[level], state, result if q is None else q, result, k, **of_level
                )
    return result


def masked_quantile(x: Tensor, mask: Tensor, q: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Return the quantile, 0-d fp32."""
    return select(x, mask, q, 0, None if group is None else functools.partial(dist.all_reduce, group=group))
