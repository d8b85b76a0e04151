"""The calls of the per-pixel kernels' host functions whose launches are compiled ahead of time."""

import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .launches import Launch, launches_of

LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
FORMATS = [(dtype, layout) for dtype in (torch.float32, torch.bfloat16) for layout in LAYOUTS]


def _logits(dtype: torch.dtype, layout: str, grid: tuple[int, int], classes: int = 21) -> Tensor:
    return torch.zeros(1, classes, *grid, dtype=dtype).to(memory_format=LAYOUTS[layout])


def pixel_calls(
    dtype: torch.dtype, layout: str, grid: tuple[int, int], size: tuple[int, int], align: bool
) -> Iterator[Callable[[], object]]:
    from u2pl_fast.kernels import ohem_mask, pixel_stats, upsampled_cross_entropy

    logits = _logits(dtype, layout, grid)
    target = torch.zeros(1, *size, dtype=torch.uint8)
    errors = torch.zeros(1, dtype=torch.int32)
    weight, pixel_weight = torch.ones(21), torch.ones(1, *size)
    yield lambda: pixel_stats.pixel_stats(logits, *size, align)
    yield lambda: ohem_mask.ohem_mask(logits, target, errors, 0.7, 1000, 255, align)

    def loss(*extra: object, need_grad: bool = True) -> Callable[[], object]:
        w, pw, smoothing = extra
        function = upsampled_cross_entropy.upsampled_cross_entropy
        return lambda: function(logits, target, w, pw, errors, 255, smoothing, align, need_grad)

    yield loss(None, None, 0.0)
    yield loss(None, None, 0.0, need_grad=False)
    yield loss(None, pixel_weight, 0.0)
    yield loss(weight, pixel_weight, 0.1)
    yield loss(None, None, 0.1)
    yield loss(weight, None, 0.0)


def quantile_calls(dtype: torch.dtype) -> Iterator[Callable[[], object]]:
    from u2pl_fast.kernels.masked_quantile import masked_quantile, select

    x = torch.zeros(4096, dtype=dtype)
    q = torch.full((), 0.8, dtype=torch.float64)
    yield lambda: masked_quantile(x, x == 0, q)
    yield lambda: select(x, x == 0, q, 0, lambda counts: None)  # with a process group


# (grid, size, align_corners): the two published ways to upscale by four, by eight, by two, and no or less than none
VOC = ((129, 129), (513, 513), True)
SHAPES = [
    VOC,
    ((128, 128), (512, 512), False),
    ((65, 65), (513, 513), True),
    ((64, 80), (128, 160), False),
    ((64, 80), (64, 80), False),
    ((64, 80), (33, 41), True),
]


def launches(full: bool, target: str = "sm_90") -> list[Launch]:
    """Distinct launches of the per-pixel ops: a set that has every variant once, or the product of all of them."""
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    chosen = (
        itertools.product(dtypes, LAYOUTS, SHAPES)
        if full
        else (
            (torch.float32, "nchw", VOC),
            (torch.bfloat16, "nhwc", SHAPES[1]),
            (torch.float16, "nchw", SHAPES[4]),
            (torch.float32, "nchw", SHAPES[3]),
        )
    )
    calls = [call for dtype, layout, shape in chosen for call in pixel_calls(dtype, layout, *shape)]
    calls += [call for dtype in (dtypes if full else dtypes[:1]) for call in quantile_calls(dtype)]
    return launches_of(*calls, target=target)
