"""Report what the compiler makes of every kernel, ahead of time, for GPUs that need not be present.

``python -m benchmarks.aot [--target sm_90 …]`` prints JSON, one row for each specialization that a ``voc`` step
launches: registers, spills, shared memory and, for NVIDIA, instructions, shuffles and the widths of reads and writes.
The host functions of ``kernels/`` are called on CPU tensors and their launches recorded, so these are the kernels that
run.
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterator

import torch
import triton

from . import contrastive_launches as contrastive
from . import pixel_launches as pixel
from .launches import (
    FORMATS,
    TARGETS,
    Launch,
    MachineCode,
    compile_launch,
    describe,
    launches_of,
    machine_code,
    resources,
)

CORNERS = 4  # that a lane reads for each class


def per_element(launch: Launch, code: MachineCode) -> float | None:
    """Return the instructions per pixel and class of a per-pixel kernel on its usual path.

    That is the bound over the corners, which has no exponentials and may be unrolled, then the sweeps; not the sweep
    that computes sums again.
    """
    if "R" not in launch.arguments:
        return None
    pixels = launch.arguments["R"] * launch.arguments["S"]
    bound = next(loop for loop in code.loops if loop.loads and not loop.powers)
    first, _, *gradient = (loop for loop in code.loops if loop.powers)
    sweeps = sum(loop.instructions / loop.powers for loop in (first, *gradient))
    return round(bound.instructions / (bound.loads / CORNERS) / pixels + sweeps, 1)


def rows(target: str) -> Iterator[dict[str, object]]:
    """Return every specialization of a ``voc`` step; on sm_90 in every format, on other targets in two."""
    formats = FORMATS if target == "sm_90" else (FORMATS[0], FORMATS[-1])
    for dtype, layout in formats:
        calls = (
            *pixel.calls(pixel.VOC, dtype, layout),
            *pixel.quantile_calls(torch.float32),
            *contrastive.calls(contrastive.VOC, dtype, layout),
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
    """Return bits per lane and how often, the widest first."""
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
