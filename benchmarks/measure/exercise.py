"""``python -m benchmarks.measure.exercise``: call every fused op, forward and backward, without timing.

For tools that observe a process: memory checkers, profilers of single kernels. It uses small workloads with odd sizes,
both layouts, and three dtypes. Each call is made ``--times`` times, because the second call finds used memory.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence

import torch

from .inputs import Inputs
from .ops import TRAININGS, names
from .registry import DTYPES, LAYOUTS, STEP, Call, Op, Setting, load
from .runner import FUSED, failure
from .workloads import NAMED, Workload

SMALL = ("tiny", "tiny-wide")


def entries(chosen: Sequence[str]) -> list[Op]:
    """Return the ops with a fused implementation: all but training steps, whose packages may be missing."""
    return [load(name) for name in chosen if name not in TRAININGS]


def settings(op: Op, workload: Workload, device: str, dtype: str, layout: str) -> Iterator[Setting]:
    """Return all banks and passes of one op in one format; none if the op does not take the format."""
    if dtype in op.dtypes and layout in op.layouts:
        for bank in op.banks:
            for passes in op.passes:
                if passes != STEP:
                    yield Setting(op.name, workload, device, dtype, layout, bank, passes)


def call(op: Op, setting: Setting, inputs: Inputs, times: int) -> str | None:
    """Call an op. Return why it could not be called, if so."""
    implementation = op.implementations[FUSED]
    reason = implementation.missing(setting)
    if reason:
        return reason
    inputs.bank = setting.bank
    try:
        prepared = Call(op, setting, FUSED, inputs)
        for _ in range(times):
            prepared()
        if setting.device == "cuda":
            torch.cuda.synchronize()
    except Exception as error:
        return failure(error)
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the calls. Exit status: 1 if an op could not be called."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.measure.exercise", description=__doc__.splitlines()[0])
    parser.add_argument("--op", nargs="+", choices=names(), default=names(), metavar="OP")
    parser.add_argument("--workload", nargs="+", choices=list(NAMED), default=SMALL)
    parser.add_argument("--dtype", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    parser.add_argument("--layout", nargs="+", choices=LAYOUTS, default=LAYOUTS)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--times", type=int, default=2)
    args = parser.parse_args(argv)
    called, failures = 0, 0
    for workload in args.workload:
        for dtype in args.dtype:
            for layout in args.layout:
                inputs = Inputs(NAMED[workload], args.device, DTYPES[dtype], layout)
                for op in entries(args.op):
                    for setting in settings(op, NAMED[workload], args.device, dtype, layout):
                        reason = call(op, setting, inputs, args.times)
                        called += 1
                        if reason:
                            failures += 1
                            print(f"FAILED {setting}: {reason}", flush=True)
    print(f"{called - failures} of {called} calls went through, {args.times} times each")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
