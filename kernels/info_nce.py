"""Compute the contrastive loss and its gradient with respect to the anchors, in one pass over the keys.

With z the normalized anchor, k⁺ the normalized positive, s = ⟨z, k⟩/τ and p the softmax over the positive and the
negatives, ℓ = log Σ e^s − s⁺ and dℓ/dz = (p⁺k⁺ + Σ_j p_j k_j − k⁺)/τ. The kernels therefore accumulate Σ_j e^{s_j} k_j
and Σ_j e^{s_j}, both relative to a running maximum. It starts at s⁺ and is thus never infinite. At the end, the
gradient passes through the normalization: da = (g − z⟨z, g⟩)/‖a‖.

``per_anchor``: one warp per anchor; reading M·N rows per class is the limit. ``shared`` and ``full``: attention with
keys = values = bank rows. A program handles a tile of anchors and one of ``parts`` equal parts of the keys of a class;
a second kernel merges the parts in order. Only slots that hold a key are read.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _launch
from ._cells import LN2, LOG2E
from ._launch import guard

EPS = tl.constexpr(1e-12)  # lower bound of the norm in a division
LANE_VALUES = 64  # values of keys being loaded, in the registers of a lane
PROGRAMS = 1024  # target for ``full``: several per multiprocessor of the largest devices
PART_KEYS = 512  # lower bound of a part, for the average class


@triton.jit
def unit_row(p_row, o_dim, m_dim):
    """Return (x / max(‖x‖, ε), ‖x‖) of one row."""
    b_row = tl.load(p_row + o_dim, mask=m_dim, other=0).to(tl.float32)
    norm = tl.sqrt(tl.sum(b_row * b_row, 0))
    return b_row / tl.maximum(norm, EPS), norm


@triton.jit
def finish(b_z, norm, b_positive, positive, maximum, total, b_vector, share, scale):
    """Return (loss, gradient) of one anchor from its sums; ``positive`` and ``maximum`` are in units of log 2."""
    loss = (tl.log2(total) + maximum - positive) * (LN2 * share)
    b_grad = (b_vector / total - b_positive) * (scale * LN2 * share)
    b_inward = (b_grad - b_z * tl.sum(b_z * b_grad, 0)) / norm
    return loss, tl.where(norm > EPS, b_inward, b_grad / EPS)


@triton.jit
def ring(p_offsets, p_pushed, i_class):
    """Return (first row, rows in use) of a class in the bank."""
    first = tl.load(p_offsets + i_class)
    capacity = tl.load(p_offsets + i_class + 1) - first
    return first, tl.minimum(tl.load(p_pushed + i_class), capacity).to(tl.int32)


@triton.jit
def info_nce_anchor_kernel(
    p_anchors,
    p_weight,
    p_positives,
    p_bank,
    p_offsets,
    p_pushed,
    p_indices,
    p_loss,
    p_grad,
    num_anchors,
    num_negatives,
    dim,
    scale,
    GRAD: tl.constexpr,
    DRAWN: tl.constexpr,
    KEYS: tl.constexpr,
    DIM: tl.constexpr,
):
    i_row = tl.program_id(0).to(tl.int64)
    i_class = i_row // num_anchors
    o_dim = tl.arange(0, DIM)
    m_dim = o_dim < dim
    weight = tl.load(p_weight + i_class)
    if weight == 0:
        tl.store(p_loss + i_row, 0.0)
        if GRAD:
            tl.store(p_grad + i_row * dim + o_dim, tl.zeros((DIM,), tl.float32), mask=m_dim)
    else:
        b_z, norm = unit_row(p_anchors + i_row * dim, o_dim, m_dim)
        b_positive, _ = unit_row(p_positives + i_class * dim, o_dim, m_dim)
        positive = tl.sum(b_z * b_positive, 0) * scale
        maximum, total, b_vector = positive, 1.0, b_positive
        first, fill = ring(p_offsets, p_pushed, i_class)
        for start in range(0, num_negatives, KEYS):
            o_key = start + tl.arange(0, KEYS)
            b_slot = tl.load(p_indices + i_row * num_negatives + o_key, mask=o_key < num_negatives, other=-1)
            if DRAWN:
                b_slot = (b_slot * fill) >> 32
            m_key = (b_slot >= 0) & (b_slot < fill)
            p_key = p_bank + (first + b_slot)[:, None] * dim + o_dim[None, :]
            b_key = tl.load(p_key, mask=m_key[:, None] & m_dim[None, :], other=0).to(tl.float32)
            b_score = tl.where(m_key, tl.sum(b_key * b_z[None, :], 1) * scale, float("-inf"))
            higher = tl.maximum(maximum, tl.max(b_score, 0))
            shrink = tl.exp2(maximum - higher)
            b_share = tl.exp2(b_score - higher)
            total = total * shrink + tl.sum(b_share, 0)
            if GRAD:
                b_vector = b_vector * shrink + tl.sum(b_share[:, None] * b_key, 0)
            maximum = higher
        share = weight / num_anchors
        loss, b_grad = finish(b_z, norm, b_positive, positive, maximum, total, b_vector, share, scale)
        tl.store(p_loss + i_row, loss)
        if GRAD:
            tl.store(p_grad + i_row * dim + o_dim, b_grad, mask=m_dim)


@triton.jit
def info_nce_part_kernel(
    p_anchors,
    p_weight,
    p_positives,
    p_bank,
    p_offsets,
    p_pushed,
    p_indices,
    p_maximum,
    p_total,
    p_vector,
    num_anchors,
    num_negatives,
    dim,
    scale,
    GRAD: tl.constexpr,
    INDEXED: tl.constexpr,
    DRAWN: tl.constexpr,
    DOT: tl.constexpr,
    ANCHORS: tl.constexpr,
    KEYS: tl.constexpr,
    CHUNK: tl.constexpr,
    DIM: tl.constexpr,
):
    """Compute maximum, Σ e^s and Σ e^s·k over a part of a class's keys; the maximum starts at the positive."""
    i_part, i_class = tl.program_id(1), tl.program_id(2).to(tl.int64)
    if tl.load(p_weight + i_class) != 0:
        o_anchor = tl.program_id(0) * ANCHORS + tl.arange(0, ANCHORS)
        m_anchor = o_anchor < num_anchors
        o_dim = tl.arange(0, DIM)
        m_dim = o_dim < dim
        p_anchor = p_anchors + (i_class * num_anchors + o_anchor)[:, None] * dim
        b_z = tl.load(p_anchor + o_dim[None, :], mask=m_anchor[:, None] & m_dim[None, :], other=0).to(tl.float32)
        b_scale = scale / tl.maximum(tl.sqrt(tl.sum(b_z * b_z, 1)), EPS)
        b_positive, _ = unit_row(p_positives + i_class * dim, o_dim, m_dim)
        b_maximum = tl.sum(b_z * b_positive[None, :], 1) * b_scale
        b_total = tl.zeros((ANCHORS,), tl.float32)
        b_vector = tl.zeros((ANCHORS, DIM), tl.float32)
        b_z = (b_z * b_scale[:, None] / scale).to(p_bank.dtype.element_ty).to(DOT)
        first, fill = ring(p_offsets, p_pushed, i_class)
        count = fill
        if INDEXED:
            count = num_negatives
        length = tl.cdiv(tl.cdiv(count, tl.num_programs(1)), KEYS) * KEYS
        end = tl.minimum((i_part + 1) * length, count)
        for start in range(i_part * length, end, KEYS):
            o_key = start + tl.arange(0, KEYS)
            if INDEXED:
                b_slot = tl.load(p_indices + i_class * num_negatives + o_key, mask=o_key < end, other=-1)
                if DRAWN:
                    b_slot = (b_slot * fill) >> 32
                m_key = (b_slot >= 0) & (b_slot < fill)
            else:
                b_slot = o_key
                m_key = o_key < end
            p_key = p_bank + (first + b_slot)[:, None] * dim
            b_key = tl.load(p_key + o_dim[None, :], mask=m_key[:, None] & m_dim[None, :], other=0).to(DOT)
            if CHUNK == DIM:
                b_score = tl.dot(b_z, tl.trans(b_key), input_precision="ieee") * scale
            else:  # without tensor cores, operands are in registers, which hold one chunk
                b_score = tl.zeros((ANCHORS, KEYS), tl.float32)
                for begin in range(0, dim, CHUNK):
                    o_chunk = begin + tl.arange(0, CHUNK)
                    m_chunk = (o_chunk < dim)[None, :]
                    b_left = tl.load(p_anchor + o_chunk[None, :], mask=m_anchor[:, None] & m_chunk, other=0)
                    b_right = tl.load(p_key + o_chunk[None, :], mask=m_key[:, None] & m_chunk, other=0)
                    b_score = tl.dot(b_left.to(tl.float32), tl.trans(b_right), acc=b_score, input_precision="ieee")
                b_score *= b_scale[:, None]
            b_score = tl.where(m_key[None, :], b_score, float("-inf"))
            b_higher = tl.maximum(b_maximum, tl.max(b_score, 1))
            b_shrink = tl.exp2(b_maximum - b_higher)
            b_share = tl.exp2(b_score - b_higher[:, None])
            b_total = b_total * b_shrink + tl.sum(b_share, 1)
            if GRAD:
                b_share = b_share.to(p_bank.dtype.element_ty).to(DOT)
                b_vector = tl.dot(b_share, b_key, acc=b_vector * b_shrink[:, None], input_precision="ieee")
            b_maximum = b_higher
        o_state = (i_class * tl.num_programs(1) + i_part) * num_anchors + o_anchor
        tl.store(p_maximum + o_state, b_maximum, mask=m_anchor)
        tl.store(p_total + o_state, b_total, mask=m_anchor)
        if GRAD:
            p_out = p_vector + o_state[:, None] * dim + o_dim[None, :]
            tl.store(p_out, b_vector, mask=m_anchor[:, None] & m_dim[None, :])


@triton.jit
def info_nce_merge_kernel(
    p_anchors,
    p_weight,
    p_positives,
    p_maximum,
    p_total,
    p_vector,
    p_loss,
    p_grad,
    num_parts,
    num_anchors,
    dim,
    scale,
    GRAD: tl.constexpr,
    DIM: tl.constexpr,
):
    i_row = tl.program_id(0).to(tl.int64)
    i_class = i_row // num_anchors
    o_dim = tl.arange(0, DIM)
    m_dim = o_dim < dim
    weight = tl.load(p_weight + i_class)
    if weight == 0:
        tl.store(p_loss + i_row, 0.0)
        if GRAD:
            tl.store(p_grad + i_row * dim + o_dim, tl.zeros((DIM,), tl.float32), mask=m_dim)
    else:
        b_z, norm = unit_row(p_anchors + i_row * dim, o_dim, m_dim)
        b_positive, _ = unit_row(p_positives + i_class * dim, o_dim, m_dim)
        positive = tl.sum(b_z * b_positive, 0) * scale
        maximum, total, b_vector = positive, 1.0, b_positive
        o_state = i_class * num_parts * num_anchors + i_row % num_anchors
        for _ in range(num_parts):
            other = tl.load(p_maximum + o_state)
            higher = tl.maximum(maximum, other)
            shrink, other_shrink = tl.exp2(maximum - higher), tl.exp2(other - higher)
            total = total * shrink + tl.load(p_total + o_state) * other_shrink
            if GRAD:
                b_other = tl.load(p_vector + o_state * dim + o_dim, mask=m_dim, other=0)
                b_vector = b_vector * shrink + b_other * other_shrink
            maximum = higher
            o_state += num_anchors
        share = weight / num_anchors
        loss, b_grad = finish(b_z, norm, b_positive, positive, maximum, total, b_vector, share, scale)
        tl.store(p_loss + i_row, loss)
        if GRAD:
            tl.store(p_grad + i_row * dim + o_dim, b_grad, mask=m_dim)


class Tile(NamedTuple):
    """Hold the sizes of a tile of ``info_nce_part_kernel``, and its compiler options."""

    anchors: int
    keys: int
    chunk: int
    num_warps: int
    num_stages: int


def tile(dim: int, dtype: torch.dtype, warp: int) -> Tile:
    """Return the sizes of a tile.

    ``dim`` is a power of 2. The sums take anchors · dim registers of a program, at most 64 per lane. Keys pass through
    shared memory, two tiles of them at once. CDNA has 64 KiB, enough for one tile; tiles of more than 16 keys would
    spill there.
    """
    anchors, keys = max(16, min(64, 16384 // dim)), max(16, min(32, dim // 2, 16384 // dim))
    warps = 8 if dim > 64 else 4
    if dtype == torch.float32:  # multiply-adds from registers
        return Tile(anchors, keys, 16, warps, 1)
    if warp == 64:
        return Tile(anchors, 16, dim, warps, 1)
    return Tile(anchors, keys, dim, warps, 2)


def dot_dtype(dtype: torch.dtype) -> tl.dtype:
    """Return the input dtype of the matrix products: the bank's.

    In the interpreter it is fp32, since the interpreter multiplies the bits of bf16.
    """
    if dtype == torch.float32 or triton.knobs.runtime.interpret:
        return tl.float32
    return tl.bfloat16 if dtype == torch.bfloat16 else tl.float16


def info_nce_forward(
    anchors: Tensor,
    weight: Tensor,
    positives: Tensor,
    bank: Tensor,
    offsets: Tensor,
    pushed: Tensor,
    indices: Tensor | None,
    negatives: str,
    temperature: float,
    need_grad: bool = True,
    drawn: bool = False,
) -> tuple[Tensor, Tensor]:
    """Compute ``reference.info_nce`` and its gradient with respect to the anchors.

    The gradient is fp32 (C, M, D), empty if not ``need_grad``. A slot at or past the fill of its class is skipped. If
    ``drawn``, ``indices`` are draws.
    """
    classes, num_anchors, dim = anchors.shape
    block = max(16, triton.next_power_of_2(dim))
    scale = LOG2E.value / temperature
    inputs = (anchors.contiguous(), weight.float().contiguous(), positives.contiguous())
    ring_state = (bank.contiguous(), offsets.contiguous(), pushed.contiguous())
    indices = pushed if indices is None else indices.contiguous()
    loss = anchors.new_empty((classes, num_anchors), dtype=torch.float32)
    grad = anchors.new_empty(anchors.shape if need_grad else (0,), dtype=torch.float32)
    with guard(anchors):
        if negatives == "per_anchor":
            warp_values = LANE_VALUES * _launch.warp_size(anchors.device)
            info_nce_anchor_kernel[(classes * num_anchors,)](
                *inputs,
                *ring_state,
                indices,
                loss,
                grad,
                num_anchors,
                indices.shape[-1],
                dim,
                scale,
                GRAD=need_grad,
                DRAWN=drawn,
                KEYS=max(1, min(64, warp_values // block)),
                DIM=block,
                num_warps=max(1, block // 512),
            )
            return loss.sum(), grad
        table = tile(block, bank.dtype, _launch.warp_size(bank.device))
        tiles, parts = triton.cdiv(num_anchors, table.anchors), 1
        if negatives == "full":
            longest = max(1, bank.shape[0] // (classes * PART_KEYS))
            parts = min(max(1, PROGRAMS // (classes * tiles)), longest)
        state = anchors.new_empty((2, classes, parts, num_anchors), dtype=torch.float32)
        vector = anchors.new_empty((classes, parts, num_anchors, dim) if need_grad else (0,), dtype=torch.float32)
        info_nce_part_kernel[(tiles, parts, classes)](
            *inputs,
            *ring_state,
            indices,
            *state,
            vector,
            num_anchors,
            indices.shape[-1],
            dim,
            scale,
            GRAD=need_grad,
            INDEXED=negatives == "shared",
            DRAWN=drawn,
            DOT=dot_dtype(bank.dtype),
            ANCHORS=table.anchors,
            KEYS=table.keys,
            CHUNK=table.chunk,
            DIM=block,
            num_warps=table.num_warps,
            num_stages=table.num_stages,
        )
        info_nce_merge_kernel[(classes * num_anchors,)](
            *inputs,
            *state,
            vector,
            loss,
            grad,
            parts,
            num_anchors,
            dim,
            scale,
            GRAD=need_grad,
            DIM=block,
            num_warps=max(1, block // 512),
        )
    return loss.sum(), grad
