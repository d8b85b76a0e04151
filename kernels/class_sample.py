"""Draw from the pixels of each class: one stable sort by class, then one lookup per draw."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _counting
from ._counting import ClassOrder, class_range
from ._launch import guard

DRAWS = 128  # draws per program


@triton.jit
def class_sample_fwd_kernel(
    p_order, p_first, p_total, p_draws, p_index, num_draws, draws_per_class, DRAWS: tl.constexpr
):
    o_draw = tl.program_id(0).to(tl.int64) * DRAWS + tl.arange(0, DRAWS)
    m_draw = o_draw < num_draws
    b_first, b_end = class_range(p_first, p_total, o_draw // draws_per_class, m_draw)
    b_rank = (tl.load(p_draws + o_draw, mask=m_draw, other=0) * (b_end - b_first)) >> 32
    b_index = tl.load(p_order + b_first + b_rank, mask=m_draw & (b_end > b_first), other=-1)
    tl.store(p_index + o_draw, b_index.to(tl.int64), mask=m_draw)


def class_sample(anchor_label: Tensor, num_classes: int, draws: Tensor) -> Tensor:
    """Compute ``reference.class_sample``."""
    return class_sample_in_order(_counting.class_order(anchor_label.contiguous(), num_classes), draws)


def class_sample_in_order(pixels: ClassOrder, draws: Tensor) -> Tensor:
    """Compute ``class_sample`` of sorted pixels."""
    draws = draws.contiguous()
    index = torch.empty_like(draws)
    with guard(draws):
        class_sample_fwd_kernel[(triton.cdiv(draws.numel(), DRAWS),)](
            *pixels, draws, index, draws.numel(), draws.shape[1], DRAWS=DRAWS, num_warps=4
        )
    return index
