"""``python -m benchmarks.accuracy --camvid DIR --msrc DIR --encoder-weights FILE``: train the runs that the tables of
docs/accuracy.md lack, most important first. Data sets without a folder are skipped.

Each finished run becomes a JSON file in ``--results``. An interrupted run resumes from its last checkpoint in
``--work``. ``--list`` shows finished and missing runs; ``--dry-run`` estimates the time. Afterwards, update tables and
figures with ``python -m benchmarks.draw.tables`` and ``python -m benchmarks.accuracy.plots``.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from ..measure import machine
from .experiments import DATASETS, IN_WORK_FOLDER, Experiment, experiments
from .labeled_images import write_list
from .runs import RESULTS, current, fits, load, meaning, record, save, settled

DESCRIPTION = "cell.json"  # flags and settings of a run, in its folder; unfinished runs have it by this name
# Time of a step relative to labels alone, for rows without a finished run. Measured once on two CPU cores.
RELATIVE_COST = {"supervised": 1.0, "mean-teacher": 2.2, "u2pl-lean": 2.3, "u2pl-paper": 3.4}


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--camvid", type=Path, metavar="DIR", help="CamVid: images/ and labels/, train and val")
    parser.add_argument("--msrc", type=Path, metavar="DIR", help="MSRC-21, in the same layout, with classes.txt")
    parser.add_argument(
        "--encoder-weights", default="imagenet", help="imagenet (downloaded) or a timm .safetensors file"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--jobs", type=int, default=1, help="runs in parallel; they share the cores")
    parser.add_argument(
        "--only", nargs="*", default=[], metavar="TEXT", help="only experiments whose name contains one of these"
    )
    parser.add_argument("--limit", type=int, help="stop after this number of runs")
    parser.add_argument("--minutes", type=float, help="after this time, save and stop unfinished runs")
    parser.add_argument("--work", type=Path, default=Path("runs/accuracy"), help="checkpoints and logs")
    parser.add_argument("--results", type=Path, help="finished runs. Unset: benchmarks/results/accuracy/DEVICE")
    parser.add_argument("--list", action="store_true", help="list every experiment and exit")
    parser.add_argument("--dry-run", action="store_true", help="estimate the time of the missing runs and exit")
    args = parser.parse_args(argv)
    args.results = args.results or RESULTS / args.device.partition(":")[0]
    args.work = args.work.resolve()  # runs start in the root of the project
    args.folders = {dataset: path.resolve() for dataset in DATASETS if (path := getattr(args, dataset))}
    if Path(args.encoder_weights).exists():
        args.encoder_weights = str(Path(args.encoder_weights).resolve())
    if args.jobs < 1:
        parser.error(f"--jobs: expected at least 1, got {args.jobs}")
    for dataset, path in args.folders.items():
        if not path.is_dir():
            parser.error(f"--{dataset}: no folder {path}")
    return args


def wanted(args: argparse.Namespace) -> list[Experiment]:
    chosen = [c for c in experiments() if not args.only or any(text in c.name for text in args.only)]
    if not chosen:
        sys.exit(f"error: --only: no experiment has {' or '.join(args.only)} in its name; see --list")
    if args.list or args.dry_run:
        return chosen
    able = [c for c in chosen if c.dataset in args.folders]
    lacking = [name for name in DATASETS if name not in args.folders and any(c.dataset == name for c in chosen)]
    if not able:
        sys.exit(f"error: --{lacking[0]}: expected the folder of this data set")
    for name in lacking:
        print(f"{name}: skipped, set its folder with --{name}", flush=True)
    return able


def seconds_a_step(done: dict[str, dict]) -> dict[tuple[str, str], float]:
    """Return the time of a step by data set and kind of row: measured, or else from relative costs."""
    measured: dict[tuple[str, str], list[float]] = {}
    by_name = {experiment.name: experiment for experiment in experiments()}
    for name, run in done.items():
        if name in by_name:
            experiment = by_name[name]
            measured.setdefault((experiment.dataset, experiment.cost_of), []).append(run["seconds"] / run["steps"])
    found = {key: statistics.median(values) for key, values in measured.items()}
    for dataset in {dataset for dataset, _ in found}:
        known = [found[dataset, row] / cost for row, cost in RELATIVE_COST.items() if (dataset, row) in found]
        for row, cost in RELATIVE_COST.items():
            found.setdefault((dataset, row), cost * statistics.median(known))
    return found


def forecast(missing: list[Experiment], done: dict[str, dict], jobs: int) -> str:
    rates = seconds_a_step(done)
    known = [c for c in missing if (c.dataset, c.cost_of) in rates]
    seconds = sum(rates[c.dataset, c.cost_of] * meaning(c)["steps"] for c in known)
    text = f"{len(missing)} runs to train"
    if known:
        text += f", about {seconds / jobs / 3600:.1f} h of training for {len(known)} of them, {jobs} at a time"
    if len(known) < len(missing):
        text += f"; no estimate yet for {len(missing) - len(known)} of them"
    return text


def command(experiment: Experiment, args: argparse.Namespace) -> list[str]:
    threads = max(1, (os.cpu_count() or 1) // args.jobs)
    machine_flags = ["--device", args.device, "--channels-last", "--save-every", "250"]
    if args.device == "cpu":
        machine_flags += ["--threads", str(threads), "--workers", "0"]
    else:
        machine_flags += ["--amp"]
    data = ["--data-root", str(args.folders[experiment.dataset]), "--encoder-weights", args.encoder_weights]
    out = args.work / experiment.name
    flags = list(experiment.flags)
    for place, flag in enumerate(experiment.flags):
        if flag in IN_WORK_FOLDER:
            flags[place + 1] = str(args.work / flags[place + 1])
        if flag == "--labeled-list":
            write_list(args.folders[experiment.dataset], experiment.labels, experiment.seed, Path(flags[place + 1]))
    return [sys.executable, "-m", "u2pl_fast.train", *flags, *data, *machine_flags, "--out", str(out), "--resume"]


def description(experiment: Experiment) -> str:
    return json.dumps([experiment.flags, meaning(experiment)])


def is_of(out: Path, experiment: Experiment) -> bool:
    """Return whether the run in this folder has the flags of the experiment, with their current meaning."""
    described = out / DESCRIPTION
    if not described.exists():
        return False
    flags, settings = json.loads(described.read_text())
    return flags == list(experiment.flags) and fits(settings, experiment)


def train(experiment: Experiment, args: argparse.Namespace, running: dict[str, subprocess.Popen]) -> int:
    """Run one experiment to its end and return the exit status."""
    out = args.work / experiment.name
    if out.exists() and not is_of(out, experiment):
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / DESCRIPTION).write_text(description(experiment))
    with open(out / "output.txt", "a") as log:
        process = subprocess.Popen(command(experiment, args), stdout=log, stderr=subprocess.STDOUT, cwd=machine.ROOT)
        running[experiment.name] = process
        status = process.wait()
    del running[experiment.name]
    return status


def run(missing: list[Experiment], args: argparse.Namespace) -> int:
    """Train the missing runs and return the number of failures."""
    started, failures, queue = time.monotonic(), 0, list(missing)
    deadline = None if args.minutes is None else started + 60 * args.minutes
    running: dict[str, subprocess.Popen] = {}
    pending: dict[Future, Experiment] = {}
    with ThreadPoolExecutor(args.jobs) as pool:
        try:
            while queue or pending:
                late = deadline is not None and time.monotonic() >= deadline
                if late:
                    queue.clear()
                    for process in list(running.values()):
                        process.send_signal(signal.SIGTERM)  # it saves and ends
                while len(pending) < args.jobs and (experiment := _next(queue, pending.values())):
                    print(f"{experiment.name}: training", flush=True)
                    pending[pool.submit(train, experiment, args, running)] = experiment
                timeout = None if deadline is None or late else max(0.1, deadline - time.monotonic())
                for future in wait(pending, timeout, FIRST_COMPLETED).done:
                    failures += not _finish(pending.pop(future), future.result(), args)
        except KeyboardInterrupt:
            for process in list(running.values()):
                process.send_signal(signal.SIGTERM)
            print("interrupted: runs are saved; repeat the command to resume", flush=True)
            return failures
    return failures


def _next(queue: list[Experiment], pending: Iterable[Experiment]) -> Experiment | None:
    """Take from the queue the first experiment that does not wait for another run."""
    coming = {experiment.name for experiment in (*queue, *pending)}
    for place, experiment in enumerate(queue):
        if experiment.needs not in coming:
            return queue.pop(place)
    return None


def with_needed(missing: list[Experiment], args: argparse.Namespace) -> list[Experiment]:
    """Return the experiments, each after the one whose checkpoint it reads, unless that is finished."""
    by_name = {experiment.name: experiment for experiment in experiments()}
    found: dict[str, Experiment] = {}
    for experiment in missing:
        if experiment.needs is not None:
            out, needed = args.work / experiment.needs, by_name[experiment.needs]
            if not (settled(out) and is_of(out, needed)):
                found.setdefault(experiment.needs, needed)
        found[experiment.name] = experiment
    return list(found.values())


def _finish(experiment: Experiment, status: int, args: argparse.Namespace) -> bool:
    """Print how a run ended and save the result of a finished one. Return False if it failed."""
    out = args.work / experiment.name
    if status:
        lines = (out / "output.txt").read_text().splitlines() or ["no output"]
        print(f"{experiment.name}: failed, status {status}: {lines[-1]}", flush=True)
        return False
    if not settled(out):
        print(f"{experiment.name}: stopped and saved; repeat the command to resume", flush=True)
        return True
    result = record(experiment, out)
    save(args.results / f"{experiment.name}.json", result)
    print(
        f"{experiment.name}: mIoU {result['miou']['last']:.4f}, best {result['miou']['best']:.4f}, "
        f"{result['seconds'] / 60:.0f} min",
        flush=True,
    )
    return True


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    chosen, done = wanted(args), load(args.results)
    fits = current(args.results)
    missing = [c for c in chosen if c.name not in fits]
    if args.list:
        for experiment in chosen:
            state = f"{done[experiment.name]['miou']['last']:.4f}" if experiment.name in done else "missing"
            other = experiment.name in done and experiment.name not in fits
            print(f"{experiment.name:42} {state}{' (other settings)' if other else ''}")
    missing = with_needed(missing[: args.limit], args)
    print(forecast(missing, fits, args.jobs), flush=True)
    if args.list or args.dry_run:
        return 0
    return 1 if run(missing, args) else 0


if __name__ == "__main__":
    sys.exit(main())
