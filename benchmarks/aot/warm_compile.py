"""``python -m benchmarks.aot.warm_compile``: compile the torch.compile baselines of some ops, without timing.

The result is in torch's cache on disk afterwards. So one process can compile while another one measures, and the other
one measures the baselines later without waiting for the compiler.
"""

import argparse
import sys
from collections.abc import Sequence

import torch

from ..measure import compiled, exercise
from ..measure.inputs import Inputs
from ..measure.ops import names
from ..measure.registry import DTYPES, LAYOUTS, Call, load
from ..measure.workloads import NAMED


def main(argv: Sequence[str] | None = None) -> int:
    """Compile. Exit status: 1 if something did not compile."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.aot.warm_compile", description=__doc__.splitlines()[0])
    parser.add_argument("--op", nargs="+", choices=names(), required=True, metavar="OP")
    parser.add_argument("--workload", nargs="+", choices=list(NAMED), required=True)
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32")
    parser.add_argument("--layout", choices=LAYOUTS, default="contiguous")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)
    failed = 0
    for workload in args.workload:
        inputs = Inputs(NAMED[workload], args.device, DTYPES[args.dtype], args.layout)
        for op in map(load, args.op):
            for setting in exercise.settings(op, NAMED[workload], args.device, args.dtype, args.layout):
                inputs.bank = setting.bank
                try:
                    with compiled.warming_up():
                        Call(op, setting, "compile", inputs)()
                    print(f"{setting}: compiled", flush=True)
                except compiled.CompileFailed as error:
                    failed += 1
                    print(f"FAILED {setting}: {error}", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
