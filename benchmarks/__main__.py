"""``python -m benchmarks``: measure, print a table, write JSON and plots."""

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from . import results, roofline, runner
from .machine import describe
from .registry import BANKS, DTYPES, LAYOUTS, PASSES, Op, Setting, load
from .workloads import NAMED, REPORTED

DEFAULT_DTYPES = ("float32", "bfloat16")


def parse(argv: Sequence[str] | None, ops: dict[str, Op]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Time and peak memory of each op, beside plain PyTorch, torch.compile and the class-loop habit.",
        epilog="Results are compared on the timed inputs before anything is timed. The JSON is described in "
        "benchmarks/results.py.",
    )
    parser.add_argument("--op", nargs="+", choices=list(ops), default=list(ops), metavar="OP", help=" | ".join(ops))
    parser.add_argument("--workload", nargs="+", choices=list(NAMED), help="default: " + " ".join(REPORTED))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", nargs="+", choices=list(DTYPES), help="default: float32 bfloat16")
    parser.add_argument("--layout", nargs="+", choices=LAYOUTS, help="default: both")
    parser.add_argument("--bank", nargs="+", choices=BANKS, default=BANKS, help="default: both")
    parser.add_argument("--pass", nargs="+", choices=PASSES, default=PASSES, dest="passes")
    impls = list(dict.fromkeys(impl for op in ops.values() for impl in op.implementations))
    parser.add_argument("--impl", nargs="+", choices=impls, default=impls, metavar="IMPL", help=" | ".join(impls))
    parser.add_argument("--threads", type=int, help="CPU threads; default: torch's")
    parser.add_argument("--rounds", type=int, help=f"default: what {runner.SECONDS} s hold, {runner.ROUNDS}")
    parser.add_argument("--no-memory", action="store_true", help="leave peak_mb out (on the CPU: a process for each)")
    parser.add_argument("--quick", action="store_true", help="a rehearsal: tiny, float32, contiguous, 3 rounds")
    parser.add_argument("--growth", action="store_true", help="growth curves instead: over pixels, C, capacity, N")
    parser.add_argument("--json", type=Path, metavar="OUT")
    parser.add_argument("--trace", type=Path, metavar="DIR", help="with --op step: a profile of each implementation")
    parser.add_argument("--merge", action="store_true", help="keep what OUT holds under other keys")
    parser.add_argument("--plot", type=Path, metavar="DIR")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: torch sees no GPU here; use --device cpu")
    if args.merge and not args.json:
        raise SystemExit("--merge: needs --json OUT to merge into")
    args.workload = args.workload or (["tiny"] if args.quick else REPORTED)
    args.rounds = args.rounds or (3 if args.quick else None)
    return args


def settings(args: argparse.Namespace, ops: dict[str, Op]) -> Iterator[Setting]:
    """Every combination that was asked for and that the op has."""
    for name, workload in itertools.product(args.op, args.workload):
        op = ops[name]
        if not set(args.impl) & set(op.implementations):
            continue
        dtypes = [x for x in op.dtypes if x in (args.dtype or DEFAULT_DTYPES)]
        layouts = [x for x in op.layouts if x in (args.layout or LAYOUTS)]
        if args.quick:
            dtypes, layouts = dtypes[: len(args.dtype or "1")], layouts[: len(args.layout or "1")]
        for dtype, layout, bank, passes in itertools.product(dtypes, layouts, op.banks, op.passes):
            if passes in args.passes and (bank is None or bank in args.bank):
                yield Setting(name, NAMED[workload], args.device, dtype, layout, bank, passes)


def line(record: results.Record) -> str:
    """One row of the printed table."""
    names = ("op", "workload", "dtype", "layout", "bank", "pass", "impl")
    head = " ".join(
        f"{record[name] or '':<{width}}" for name, width in zip(names, (24, 10, 8, 13, 7, 16, 15), strict=True)
    )
    if record["ms_median"] is None:
        return f"{head} {'—':>10}  {record['reason']}"
    share = record["floor_ms"] / record["ms_median"] if record["floor_ms"] else None
    cells = [f"{record['ms_median']:10.3f}"]
    for value, form in (
        (record["ratio_vs_eager"], "{:8.2f}×"),
        (record["ratio_vs_compile"], "{:8.2f}×"),
        (record["peak_mb"], "{:9.1f}"),
        (share and 100 * share, "{:6.1f} %"),
    ):
        cells.append("—".rjust(len(form.format(0))) if value is None else form.format(value))
    return f"{head} {' '.join(cells)}"


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 1 where implementations disagree or fail; what could be measured is written all the same."""
    ops = load()
    args = parse(argv, ops)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.growth:
        from . import growth

        growth.run(args)
        return 0
    chosen = list(settings(args, ops))
    if not chosen:
        raise SystemExit("nothing to measure: no chosen op has the chosen dtype, layout, bank and pass together")
    data = {"machine": describe(args.device, quick=args.quick), "records": [], "parts": []}
    ceilings = roofline.Ceilings(**data["machine"]["ceilings"])
    old = results.load(args.json) if args.merge and args.json.exists() else None
    print(f"{data['machine']['name']}, {data['machine']['threads']} threads, torch {torch.__version__}")
    print(f"{'':<99} {'ms':>10} {'eager÷':>9} {'compile÷':>9} {'+MiB':>9} {'floor':>8}")
    failures: list[str] = []
    for setting in chosen:
        op = ops[setting.op]
        impls = [impl for impl in op.implementations if impl in args.impl]
        try:
            records, parts = runner.measure(
                op, setting, impls, ceilings, rounds=args.rounds, peak=not args.no_memory, trace=args.trace
            )
        except runner.Disagreement as error:
            failures.append(str(error))
            print(f"{setting}: not timed, {error}", file=sys.stderr, flush=True)
            continue
        failures += [r["reason"] for r in records if (r["reason"] or "").startswith(runner.FAILED)]
        data["records"] += records
        data["parts"] += parts
        print("\n".join(map(line, records)), flush=True)
        if args.json:  # after each setting: hours of measuring must not hang on the last one
            results.save(args.json, results.merged(old, data) if old else data)
    if args.plot:
        from . import plots

        plots.bars((results.merged(old, data) if old else data), args.plot)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
