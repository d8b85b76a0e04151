"""Registers, spills and shared memory of every kernel, compiled ahead of time for GPUs that need not be present.

``python -m benchmarks.aot [--full] [--target sm_90 …]`` prints them as JSON, one row for each specialisation that the
ops launch. ``launches`` is what ``tests/test_aot.py`` holds to its budgets, so both see what really runs: the host
functions of ``kernels/`` are called on CPU tensors and their launches recorded.
"""

import argparse
import itertools
import json
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from tests import contrastive_launches as contrastive
from tests.launches import TARGETS, Launch, compile_launch, launches_of, resources

LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}


def _logits(dtype: torch.dtype, layout: str, grid: tuple[int, int], classes: int = 21) -> Tensor:
    return torch.zeros(1, classes, *grid, dtype=dtype).to(memory_format=LAYOUTS[layout])


def _pixel_calls(
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


def _quantile_calls(dtype: torch.dtype) -> Iterator[Callable[[], object]]:
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
    calls = [call for dtype, layout, shape in chosen for call in _pixel_calls(dtype, layout, *shape)]
    calls += [call for dtype in (dtypes if full else dtypes[:1]) for call in _quantile_calls(dtype)]
    return launches_of(*calls, target=target)


def contrastive_launches(full: bool, target: str = "sm_90") -> list[Launch]:
    """Distinct launches of the contrastive ops: of one workload, or of the product of all with dtypes and layouts."""
    chosen = (
        itertools.product(contrastive.WORKLOADS, contrastive.DTYPES, contrastive.LAYOUTS)
        if full
        else [(contrastive.VOC, torch.bfloat16, torch.contiguous_format)]
    )
    return launches_of(*(call for one in chosen for call in contrastive.calls(*one)), target=target)


def describe(launch: Launch) -> dict[str, object]:
    """Kernel, pointer types and constants: what makes it a specialisation of its own."""
    tensors = {k: str(v.dtype).removeprefix("torch.") for k, v in launch.arguments.items() if isinstance(v, Tensor)}
    constants = {p.name: launch.arguments[p.name] for p in launch.kernel.params if p.is_constexpr}
    constants = {name: value if isinstance(value, int) else str(value) for name, value in constants.items()}
    return {
        "kernel": launch.kernel.__name__,
        "dtype": tensors.get("p_logits", tensors.get("p_x", "")),
        **constants,
        **launch.options,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.aot", description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="every dtype, layout and scale")
    parser.add_argument("--target", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    args = parser.parse_args()
    rows = []
    for target in args.target:
        for launch in [*launches(args.full, target), *contrastive_launches(args.full, target)]:
            row = describe(launch) | {"target": target} | resources(compile_launch(launch, target))._asdict()
            if row not in rows:  # differing only in what divides by 16
                rows.append(row)
    print("[" + ",\n".join(map(json.dumps, rows)) + "]")


if __name__ == "__main__":
    main()
