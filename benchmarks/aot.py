"""What the compiler makes of every kernel, ahead of time and for GPUs that need not be present.

``python -m benchmarks.aot [--target sm_90 …]`` prints it as JSON, one row for each specialization that a ``voc`` step
launches: registers, spills, shared memory and, for NVIDIA, instructions, shuffles and the widths of reads and writes.
The host functions of ``kernels/`` are called on CPU tensors and their launches recorded, so this is what really runs.
``launches`` is what ``tests/test_aot.py`` holds to its budgets.
"""

import argparse
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator

import torch
import triton
from torch import Tensor

from tests import contrastive_launches as contrastive
from tests.launches import TARGETS, Launch, MachineCode, compile_launch, launches_of, machine_code, resources

LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
FORMATS = [(dtype, layout) for dtype in (torch.float32, torch.bfloat16) for layout in LAYOUTS]
CORNERS = 4  # that a lane reads for each class


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
    calls = [call for dtype, layout, shape in chosen for call in pixel_calls(dtype, layout, *shape)]
    calls += [call for dtype in (dtypes if full else dtypes[:1]) for call in _quantile_calls(dtype)]
    return launches_of(*calls, target=target)


def describe(launch: Launch) -> dict[str, object]:
    """Kernel, type of what it reads, and constants: what makes it a specialization of its own."""
    tensors = {k: str(v.dtype).removeprefix("torch.") for k, v in launch.arguments.items() if isinstance(v, Tensor)}
    constants = {p.name: launch.arguments[p.name] for p in launch.kernel.params if p.is_constexpr}
    constants = {name: value if isinstance(value, int) else str(value) for name, value in constants.items()}
    return {
        "kernel": launch.kernel.__name__,
        "dtype": tensors.get("p_logits", tensors.get("p_x", "")),
        **constants,
        **launch.options,
    }


def per_element(launch: Launch, code: MachineCode) -> float | None:
    """Instructions for each pixel and class of a per-pixel kernel, as its usual path runs: the bound over the corners,
    which has no exponentials and may be unrolled, then the sweeps; not the sweep that takes sums again.
    """
    if "R" not in launch.arguments:
        return None
    pixels = launch.arguments["R"] * launch.arguments["S"]
    bound = next(loop for loop in code.loops if loop.loads and not loop.powers)
    first, _, *gradient = (loop for loop in code.loops if loop.powers)
    sweeps = sum(loop.instructions / loop.powers for loop in (first, *gradient))
    return round(bound.instructions / (bound.loads / CORNERS) / pixels + sweeps, 1)


def rows(target: str) -> Iterator[dict[str, object]]:
    """Every specialization of a ``voc`` step; on sm_90 in every format, elsewhere in two."""
    formats = FORMATS if target == "sm_90" else (FORMATS[0], FORMATS[-1])
    for dtype, layout in formats:
        calls = (
            *pixel_calls(dtype, layout, *VOC),
            *_quantile_calls(torch.float32),
            *contrastive.calls(contrastive.VOC, dtype, LAYOUTS[layout]),
        )
        for launch in launches_of(*calls, target=target):
            kernel = compile_launch(launch, target)
            row = describe(launch) | {"dtype": str(dtype).removeprefix("torch."), "layout": layout, "target": target}
            row |= resources(kernel)._asdict()
            if "cubin" in kernel.asm:
                code = machine_code(kernel)
                row |= {"instructions": code.instructions, "shuffles": code.shuffles}
                row |= {"loads": _widths(code.loads), "stores": _widths(code.stores)}
                row["per_element"] = per_element(launch, code)
            yield row


def _widths(accesses: Counter[int]) -> str:
    """Bits a lane and how often, the widest first."""
    return ", ".join(f"{number}×{bits}" for bits, number in sorted(accesses.items(), reverse=True))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.aot", description=__doc__.splitlines()[0])
    parser.add_argument("--target", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    args = parser.parse_args()
    found = [row for target in args.target for row in rows(target)]
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in found)
    print(f'{{"triton": "{triton.__version__}", "rows": [\n{lines}\n]}}')


if __name__ == "__main__":
    main()
