"""List the calls of the per-pixel kernels' host functions whose launches are compiled ahead of time."""

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from .launches import DTYPES, LAYOUTS, Launch, describe, launches_of


class Workload(NamedTuple):
    """Hold the grid of the logits, the size that they are upscaled to, and how."""

    grid: tuple[int, int]
    size: tuple[int, int]
    align_corners: bool


# The two published ways to upscale by four; by eight, by two, not at all, and downscaling.
VOC = Workload((129, 129), (513, 513), True)
WORKLOADS = [
    VOC,
    Workload((128, 128), (512, 512), False),
    Workload((65, 65), (513, 513), True),
    Workload((64, 80), (128, 160), False),
    Workload((64, 80), (64, 80), False),
    Workload((64, 80), (33, 41), True),
]


def calls(w: Workload, dtype: torch.dtype, layout: str) -> Iterator[Callable[[], object]]:
    """Return the host functions as the ops call them; only shapes, dtypes and strides matter."""
    from u2pl_fast.kernels import ohem_mask, pixel_stats, upsampled_cross_entropy

    logits = torch.zeros(1, 21, *w.grid, dtype=dtype).to(memory_format=LAYOUTS[layout])
    target = torch.zeros(1, *w.size, dtype=torch.uint8)
    errors = torch.zeros(1, dtype=torch.int32)
    weight, pixel_weight = torch.ones(21), torch.ones(1, *w.size)
    yield lambda: pixel_stats.pixel_stats(logits, *w.size, w.align_corners)
    yield lambda: ohem_mask.ohem_mask(logits, target, errors, 0.7, 1000, 255, w.align_corners)

    def loss(*extra: object, need_grad: bool = True) -> Callable[[], object]:
        class_weight, per_pixel, smoothing = extra
        arguments = (logits, target, class_weight, per_pixel, errors, 255, smoothing, w.align_corners, need_grad)
        return lambda: upsampled_cross_entropy.upsampled_cross_entropy(*arguments)

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


def launches(full: bool, target: str = "sm_90") -> list[Launch]:
    """Return distinct launches of the per-pixel ops.

    Every variant once for sm_90, those in fp32 that upscale by four for another target, or the product of workloads,
    dtypes and layouts.
    """
    chosen = [
        (VOC, torch.float32, "nchw"),
        (WORKLOADS[1], torch.bfloat16, "nhwc"),
        (WORKLOADS[4], torch.float16, "nchw"),
        (WORKLOADS[3], torch.float32, "nchw"),
    ]
    if full:
        chosen = list(itertools.product(WORKLOADS, DTYPES, LAYOUTS))
    every = [call for one in chosen for call in calls(*one)]
    every += [call for dtype in (DTYPES if full else DTYPES[:1]) for call in quantile_calls(dtype)]
    found = launches_of(*every, target=target)
    if full or target == "sm_90":
        return found
    return [x for x in found if describe(x)["dtype"] in ("float32", "") and x.arguments.get("R", 4) == 4]
