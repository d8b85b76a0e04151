"""Check and measure everything that needs a GPU, and keep each result as soon as it exists.

    python -m benchmarks.gpu_check --part right --out DIR     correctness: tests, memory checker, graphs: 3 minutes
    python -m benchmarks.gpu_check --part fast --out DIR      speed: ops, training steps, counters: 6 minutes
    python -m benchmarks.gpu_check --part learn --out DIR --msrc DIR --encoder-weights FILE      accuracy runs

Needs an unpacked checkout, torch ≥ 2.10, and no network. To start sooner, make a folder on any machine beforehand
(``--prepare``, then ``--carried``). Afterwards, ``--install DIR`` puts the figures where the documentation reads them.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..measure.ops import TRAININGS
from .out import RESULTS, TESTS, TRAINING, Out, loss_pairs, rows
from .parts import SECONDS, Plan
from .schedule import Stage, end_on_signals, run, timetable

PARTS = tuple(SECONDS)
PATIENCE = 6  # factor on the time of a stage when it is tried on a CPU


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", nargs="+", choices=PARTS, default=PARTS[:2], help="default: right, then fast")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the results; existing results are kept")
    parser.add_argument("--carried", type=Path, metavar="DIR", help="a folder made with --prepare")
    parser.add_argument("--msrc", type=Path, metavar="DIR", help="MSRC-21, for learn; default: that of --carried")
    parser.add_argument("--encoder-weights", metavar="FILE", help="for learn; default: those of --carried")
    parser.add_argument("--minutes", type=float, help=f"limit of each part; default: {_minutes()}")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="try everything on tiny workloads")
    parser.add_argument("--timetable", action="store_true", help="print the expected time of each stage, and exit")
    other = parser.add_argument_group("before and after")
    other.add_argument("--prepare", type=Path, metavar="DIR", help="make the folder for --carried, without a GPU")
    other.add_argument("--target", default="sm_90", help="of --prepare: the GPU's architecture (default: %(default)s)")
    other.add_argument("--wheels", type=Path, metavar="DIR", help="of --prepare, --missing: wheels of lacking packages")
    other.add_argument("--missing", action="store_true", help="print the needed packages that are missing, and exit")
    other.add_argument(
        "--installed", type=Path, metavar="FILE", help="of --missing: what the other machine's `pip freeze` prints"
    )
    other.add_argument(
        "--install", type=Path, nargs="+", metavar="DIR", help="copy these results into benchmarks/results, and exit"
    )
    args = parser.parse_args(argv)
    for name in ("carried", "msrc", "wheels", "installed"):
        path = getattr(args, name)
        if path is not None and not path.exists():
            parser.error(f"--{name}: there is no {path}")
    if not (args.out or args.prepare or args.missing or args.install or args.timetable):
        parser.error("--out DIR is needed")
    args.seconds = {part: 60 * args.minutes if args.minutes else SECONDS[part] for part in PARTS}
    return args


def _minutes() -> str:
    return ", ".join(f"{part} {seconds / 60:g}" for part, seconds in SECONDS.items())


def check(args: argparse.Namespace) -> int:
    """Run the parts. Exit status: 1 if a stage failed or was stopped."""
    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: torch sees no GPU here; try it with --device cpu --quick")
    out = Out(args.out)
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    if args.carried:
        from .carried import MSRC, take

        taken = take(args.carried)
        # This process checks the imports of a stage, so it must see the packages too.
        sys.path += [path for path in [taken.environment.get("PYTHONPATH")] if path]
        paths = [os.environ.get("PYTHONPATH"), taken.environment.get("PYTHONPATH")]
        environment |= taken.environment | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}
        print(f"carried: {', '.join(taken.said)}", flush=True)
        args.msrc = args.msrc or next(iter(args.carried.glob(MSRC)), None)
        args.encoder_weights = args.encoder_weights or next(map(str, args.carried.glob("*.safetensors")), None)
    args.msrc = args.msrc and args.msrc.resolve()
    args.encoder_weights = str(Path(args.encoder_weights).resolve()) if args.encoder_weights else "imagenet"
    end_on_signals()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as work:
        plan = Plan(args, out, Path(work))
        for part in args.part:
            stages, seconds = plan.part(part), args.seconds[part]
            if args.device == "cpu":
                seconds *= PATIENCE
                for stage in stages:
                    stage.limit *= PATIENCE
            print(f"\n{part}: at most {seconds / 60:.1f} minutes", flush=True)
            rows += run(part, stages, seconds, environment, out)
    print("\n" + summary(out))
    return int(any(row["status"] in ("failed", "stopped") for row in rows))


def summary(out: Out) -> str:
    """Return the main facts of the folder, the most important last, because often only the end of a log is kept."""
    return "\n".join([*_figures(out), *_training(out), *_tests(out), *_stages(out)])


def _stages(out: Out) -> list[str]:
    return [
        f"{row['part']:<6} {row['stage']:<16} {row['status']:<9} {row.get('note', '')[:100]}" for row in out.stages()
    ]


def _tests(out: Out) -> list[str]:
    last = {row["test"]: row["outcome"] for row in rows(out / TESTS)}
    if not last:
        return []
    counts = {outcome: list(last.values()).count(outcome) for outcome in sorted(set(last.values()))}
    failed = [f"  {outcome}: {test}" for test, outcome in last.items() if outcome not in ("passed", "skipped")]
    return ["tests: " + ", ".join(f"{count} {outcome}" for outcome, count in counts.items()), *failed[:20]]


def _training(out: Out) -> list[str]:
    pairs = loss_pairs(out / TRAINING)
    if not pairs:
        return []
    apart = sum(abs(a - b) for a, b in pairs) / sum(abs(b) for _, b in pairs)
    first = f"first losses {pairs[0][0]:.5f} and {pairs[0][1]:.5f}"
    return [f"training, fused and reference: {first}, {100 * apart:.2f} % apart over {len(pairs)} steps"]


def _figures(out: Out) -> list[str]:
    """Return a line for each measured fused op and training step."""
    path = out / RESULTS
    records = json.loads(path.read_text())["records"] if path.exists() else []
    lines = []
    for r in records:
        if r["ms_median"] is None or (r["op"] not in TRAININGS and r["impl"] != "fused"):
            continue
        name = " ".join(str(r[k]) for k in ("op", "workload", "dtype", "layout", "bank", "pass", "impl") if r[k])
        figures = [f"{r['ms_median']:.4g} ms"]
        for label, key in (("graph", "graph_ms"), ("host", "host_ms"), ("eager ÷", "ratio_vs_eager")):
            figures += [f"{label} {r[key]:.3g}"] if r.get(key) else []
        figures += [f"compile ÷ {r['ratio_vs_compile']:.3g}"] if r["ratio_vs_compile"] else []
        figures += [f"floor {100 * r['floor_ms'] / r['ms_median']:.0f} %"] if r["floor_ms"] else []
        lines.append(f"{name}: {', '.join(figures)}{'  DISAGREES' if 'disagrees' in (r['reason'] or '') else ''}")
    return lines


def print_timetable(stages: Sequence[Stage], part: str, seconds: float) -> None:
    expected, limits = timetable(stages, "expected"), timetable(stages, "limit")
    end = max(end for _, end in expected.values())
    print(f"\n{part}: {seconds:.0f} s, expected to end after {end:.0f} s")
    for stage in stages:
        begin, end = expected[stage.name]
        by = limits[stage.name][1]
        print(f"  {stage.name:<18} {begin:4.0f} to {end:4.0f} s, limit {stage.limit:4.0f} s, at the latest {by:4.0f} s")


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    if args.missing:
        from .needs import missing

        absent, unknown = missing(args.installed, args.wheels)
        print("\n".join(absent))
        if unknown:
            print(f"what {', '.join(unknown)} need is unknown here: install them, or name --wheels", file=sys.stderr)
        return 0
    if args.timetable:
        with tempfile.TemporaryDirectory() as folder:
            for part in args.part:
                stages = Plan(args, Out(Path(folder)), Path(folder)).part(part)
                print_timetable(stages, part, args.seconds[part])
        return 0
    if args.prepare:
        return _prepare(args)
    if args.install:
        from .install import install

        print("\n".join(install(args.install)))
        return 0
    return check(args)


def _prepare(args: argparse.Namespace) -> int:
    from .carried import prepare

    weights = Path(args.encoder_weights) if args.encoder_weights else None
    said = prepare(args.prepare, target=args.target, wheels=args.wheels, msrc=args.msrc, weights=weights)
    print("\n".join(said))
    print("\nCopy this folder and the checkout to the other machine, and run there, with its Python:")
    for part in PARTS if args.msrc else PARTS[:2]:
        print(f"  python3 -m benchmarks.gpu_check --part {part} --carried {args.prepare} --out gpu-results")
    return 0


if __name__ == "__main__":
    sys.exit(main())
