"""Fuse the steps of the contrastive branch between its ops: one sort of the anchors for two ops, and class weights."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _counting, class_sample, class_sum
from ._launch import guard

CLASSES = 1024  # classes per iteration


@triton.jit
def takes_part(p_anchors, p_offsets, p_pushed, o_class, m_class):
    """Return 1 where a class has an anchor and a key, else 0."""
    b_anchors = tl.load(p_anchors + o_class, mask=m_class, other=0)
    b_pushed = tl.load(p_pushed + o_class, mask=m_class, other=0)
    b_capacity = tl.load(p_offsets + o_class + 1, mask=m_class, other=0)
    b_capacity -= tl.load(p_offsets + o_class, mask=m_class, other=0)
    return ((b_anchors > 0) & (tl.minimum(b_pushed, b_capacity) > 0)).to(tl.int32)


@triton.jit
def class_weight_kernel(
    p_anchors, p_offsets, p_pushed, p_before, p_weight, p_taken, p_active, num_classes, CLASSES: tl.constexpr
):
    active = 0
    for start in range(0, num_classes, CLASSES):
        o_class = start + tl.arange(0, CLASSES)
        active += tl.sum(takes_part(p_anchors, p_offsets, p_pushed, o_class, o_class < num_classes), 0)
    tl.store(p_active, active.to(tl.int64))
    share = tl.div_rn(1.0, tl.maximum(active, 1).to(tl.float32))
    for start in range(0, num_classes, CLASSES):
        o_class = start + tl.arange(0, CLASSES)
        m_class = o_class < num_classes
        b_part = takes_part(p_anchors, p_offsets, p_pushed, o_class, m_class)
        tl.store(p_weight + o_class, tl.where(b_part > 0, share, 0.0), mask=m_class)
        b_before = tl.load(p_before + o_class, mask=m_class, other=0)
        b_pushed = tl.load(p_pushed + o_class, mask=m_class, other=0)
        tl.store(p_taken + o_class, b_pushed - b_before, mask=m_class)


def class_weight(anchors: Tensor, offsets: Tensor, pushed: Tensor, before: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return (weight, active, taken) as ``ops.contrastive_loss`` defines them."""
    weight = anchors.new_empty(anchors.shape, dtype=torch.float32)
    active, taken = anchors.new_empty(()), torch.empty_like(pushed)
    classes = min(CLASSES, triton.next_power_of_2(anchors.numel()))
    with guard(anchors):
        class_weight_kernel[(1,)](
            anchors, offsets, pushed, before, weight, taken, active, anchors.numel(), CLASSES=classes, num_warps=4
        )
    return weight, active, taken


def sum_and_sample(keys: Tensor, anchor_label: Tensor, num_classes: int, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Return the results of ``class_sum`` and ``class_sample``."""
    pixels = _counting.class_order(anchor_label, num_classes)
    return class_sum.class_sum_in_order(keys, pixels), class_sample.class_sample_in_order(pixels, draws)
