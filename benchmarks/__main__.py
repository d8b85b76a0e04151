"""``python -m benchmarks``: measure, print a table, and write JSON and plots."""

import argparse
import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from .measure import results, roofline, runner
from .measure.inputs import Inputs
from .measure.machine import describe
from .measure.ops import TRAININGS, names
from .measure.registry import BANKS, DEFAULT_DTYPES, DTYPES, LAYOUTS, PASSES, Op, Setting, load
from .measure.workloads import NAMED, REPORTED

MARKS = (runner.FAILED, results.DISAGREES)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure time and peak memory of each op, plain PyTorch, torch.compile and loops over classes.",
        epilog="Implementations must return the same results before they are timed. The JSON is described in "
        "benchmarks/measure/results.py.",
    )
    parser.add_argument("--op", nargs="+", choices=names(), default=names(), metavar="OP", help=" | ".join(names()))
    parser.add_argument("--workload", nargs="+", choices=list(NAMED), help="default: " + " ".join(REPORTED))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", nargs="+", choices=list(DTYPES), help="default: float32 bfloat16")
    parser.add_argument("--layout", nargs="+", choices=LAYOUTS, help="default: both")
    parser.add_argument(
        "--paired", action="store_true", help="first dtype with first layout, and so on: no other combination"
    )
    parser.add_argument("--bank", nargs="+", choices=BANKS, default=BANKS, help="default: both")
    parser.add_argument("--pass", nargs="+", choices=PASSES, default=PASSES, dest="passes")
    parser.add_argument("--impl", nargs="+", metavar="IMPL", help="eager | compile | fused | …; default: all of the op")
    parser.add_argument("--threads", type=int, help="CPU threads; default: torch's")
    parser.add_argument("--rounds", type=int, help="default: as many as fit into a few seconds")
    parser.add_argument(
        "--no-memory", action="store_true", help="do not measure peak_mb (on the CPU it needs a process each)"
    )
    parser.add_argument("--quick", action="store_true", help="try everything: tiny, float32, contiguous, 3 rounds")
    parser.add_argument("--growth", action="store_true", help="measure growth curves instead: pixels, C, capacity, N")
    parser.add_argument("--json", type=Path, metavar="OUT")
    parser.add_argument(
        "--trace", type=Path, metavar="DIR", help="with --op step: write a profile of each implementation"
    )
    parser.add_argument("--merge", action="store_true", help="keep the records of OUT with other keys")
    parser.add_argument("--plot", type=Path, metavar="DIR")
    parser.add_argument(
        "--keep-disagreeing",
        action="store_true",
        help="time an implementation whose results differ too, and mark its record",
    )
    parser.add_argument("--skip", type=int, default=0, metavar="N", help="skip the first N settings")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: torch sees no GPU here; use --device cpu")
    if args.merge and not args.json:
        raise SystemExit("--merge: needs --json OUT to merge into")
    args.workload = args.workload or (["tiny"] if args.quick else REPORTED)
    args.rounds = args.rounds or (3 if args.quick else None)
    if args.paired and len(args.dtype or DEFAULT_DTYPES) != len(args.layout or LAYOUTS):
        raise SystemExit("--paired: needs the same number of --dtype and --layout")
    return args


def entries(args: argparse.Namespace) -> dict[str, Op]:
    """Return the chosen ops. Print a line for an op whose packages are missing, and skip it."""
    found = {}
    for name in args.op:
        try:
            found[name] = load(name)
        except ImportError as error:
            print(f"{name}: skipped, {error}", file=sys.stderr, flush=True)
    known = list(dict.fromkeys(impl for op in found.values() for impl in op.implementations))
    args.impl = args.impl or known
    if found and not set(args.impl) & set(known):
        raise SystemExit(f"--impl: {' '.join(args.impl)}: none of these ops has it; choose from {', '.join(known)}")
    return found


def settings(args: argparse.Namespace, ops: dict[str, Op]) -> Iterator[Setting]:
    """Yield every chosen combination that an op has; those that share inputs follow each other."""
    dtypes, layouts = args.dtype or DEFAULT_DTYPES, args.layout or LAYOUTS
    if args.quick:
        dtypes, layouts = dtypes[: len(args.dtype or "1")], layouts[: len(args.layout or "1")]
    formats = list(zip(dtypes, layouts, strict=True) if args.paired else itertools.product(dtypes, layouts))
    for workload, (dtype, layout), op in itertools.product(args.workload, formats, ops.values()):
        if not set(args.impl) & set(op.implementations):
            continue
        if args.quick and op.name in TRAININGS:  # they have only one format
            dtype, layout = op.dtypes[0], op.layouts[0]
        if dtype not in op.dtypes or layout not in op.layouts:
            continue
        for bank, passes in itertools.product(op.banks, op.passes):
            if passes in args.passes and (bank is None or bank in args.bank):
                yield Setting(op.name, NAMED[workload], args.device, dtype, layout, bank, passes)


def line(record: results.Record) -> str:
    """Return one row of the printed table."""
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


class Report:
    """Keep what was measured: in memory, and on disk after each setting, because a run may be stopped."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.path = args.json
        self.data: dict[str, Any] = {"machine": describe(args.device, quick=args.quick), "records": [], "parts": []}
        keeps = (args.merge or args.skip) and args.json and args.json.exists()
        self.old = results.load(args.json) if keeps else None
        if self.old:
            results.merged(self.old, self.data)  # refuse a file of another machine before anything is measured

    @property
    def all(self) -> dict[str, Any]:
        return results.merged(self.old, self.data) if self.old else self.data

    def add(self, measured: runner.Measured) -> None:
        self.data["records"] += measured.records
        self.data["parts"] += measured.parts
        if measured.kernels:
            self.data.setdefault("kernels", []).extend(measured.kernels)
        print("\n".join(map(line, measured.records)), flush=True)
        if self.path:
            results.save(self.path, self.all)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure. Exit status: 1 if implementations disagree or fail; all other results are still written."""
    args = parse(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    ops = entries(args)
    if args.growth:
        from .measure import growth

        curves = growth.run(args)
        if args.plot:
            from .draw import measurement_plots

            measurement_plots.growth(curves, args.plot)
        return 0
    chosen = list(settings(args, ops))
    if not chosen:
        raise SystemExit("nothing to measure: no chosen op has the chosen dtype, layout, bank and pass together")
    report = Report(args)
    machine = report.data["machine"]
    print(f"{machine['name']}, {machine['threads']} threads, torch {torch.__version__}")
    print(f"{'':<99} {'ms':>10} {'eager÷':>9} {'compile÷':>9} {'+MiB':>9} {'floor':>8}")
    failures = _measure(chosen, ops, args, report)
    if args.plot:
        from .draw import measurement_plots

        measurement_plots.bars(report.all, args.plot)
    return 1 if failures else 0


def _measure(chosen: list[Setting], ops: dict[str, Op], args: argparse.Namespace, report: Report) -> list[str]:
    """Measure the settings after the first ``--skip``. Return what failed or disagreed."""
    ceilings = roofline.Ceilings(**report.data["machine"]["ceilings"])
    failures = [r["reason"] for r in report.old["records"] if _failed(r)] if args.skip and report.old else []
    inputs: tuple[tuple, Inputs] | None = None
    for number, setting in enumerate(chosen[args.skip :], args.skip + 1):
        impls = [impl for impl in ops[setting.op].implementations if impl in args.impl]
        same = (setting.workload, setting.dtype, setting.layout)
        if inputs is None or inputs[0] != same:
            inputs = None  # freed before the next ones are made
            inputs = same, setting.inputs()
        try:
            measured = runner.measure(
                ops[setting.op],
                setting,
                impls,
                ceilings,
                inputs[1],
                rounds=args.rounds,
                peak=not args.no_memory,
                trace=args.trace,
                keep_disagreeing=args.keep_disagreeing,
            )
        except runner.Disagreement as error:
            failures.append(str(error))
            print(f"{setting}: not timed, {error}", file=sys.stderr, flush=True)
            continue
        except Exception as error:
            if args.device == "cpu":
                raise
            reason = str(error) if isinstance(error, runner.ContextLost) else runner.failure(error)
            # Measure the settings after this one in a new process, whatever state the GPU is in.
            records = [runner.unmeasured(setting, impl, reason) for impl in impls]
            measured = runner.Measured(records, reliable=False)
        failures += [r["reason"] for r in measured.records if _failed(r)]
        report.add(measured)
        if not measured.reliable and args.json and number < len(chosen):
            _go_on_after(number)
            break
    return failures


def _failed(record: results.Record) -> bool:
    """Return whether a record failed, also if its reason names the implementation first."""
    reason = record["reason"] or ""
    return reason.startswith(MARKS) or reason.partition(": ")[2].startswith(MARKS)


def _go_on_after(number: int) -> None:
    """Replace this process by one that measures the settings after the first ``number``. Do not return."""
    print(f"a new process continues with setting {number + 1}", flush=True)
    arguments = [a for i, a in enumerate(sys.argv[1:]) if "--skip" not in sys.argv[i : i + 2]]
    os.execv(sys.executable, [sys.executable, "-m", "benchmarks", *arguments, "--skip", str(number)])


if __name__ == "__main__":
    sys.exit(main())
