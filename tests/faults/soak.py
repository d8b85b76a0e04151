"""``python -m tests.faults.soak --minutes 30 --out DIR``: does a long training grow?

Trains in a process of its own and samples the memory and the open files of it and its loader processes, and the time of
a step from its log. Writes ``soak.json`` and ``soak.png``, and fails where the last third needs more than 5 % more
memory than the middle one, or any more open files.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parents[2]
FLAGS = [
    "--encoder",
    "mobilenetv3_small_050",
    "--workers",
    "1",
    "--threads",
    "1",
    "--device",
    "cpu",
    "--save-every",
    "50",
]
FLAGS += ["--steps", "1000000", "--eval-every", "250", "--log-every", "10", "--amp", "--channels-last"]


def family(pid: int) -> list[Path]:
    """/proc folders of a process and its descendants."""
    found, queue = [], [pid]
    while queue:
        here = Path(f"/proc/{queue.pop()}")
        try:
            children = [int(x) for t in (here / "task").iterdir() for x in (t / "children").read_text().split()]
        except OSError:  # it has just ended
            continue
        found.append(here)
        queue += children
    return found


def sample(pid: int) -> tuple[float, int]:
    """MiB that only this family occupies (shared pages counted once), and its open files."""
    memory = files = 0
    for here in family(pid):
        try:
            rollup = (here / "smaps_rollup").read_text().splitlines()
            memory += next(int(line.split()[1]) for line in rollup if line.startswith("Pss:"))
            files += len(list((here / "fd").iterdir()))
        except OSError:
            continue
    return memory / 1024, files


def watch(process: subprocess.Popen, seconds: float, every: float) -> dict[str, list]:
    rows: dict[str, list] = {"seconds": [], "mib": [], "files": []}
    began = time.monotonic()
    while (now := time.monotonic() - began) < seconds:
        if process.poll() is not None:
            raise SystemExit(f"the training ended by itself with exit status {process.returncode}")
        memory, files = sample(process.pid)
        for name, value in zip(rows, (round(now, 1), round(memory, 1), files), strict=True):
            rows[name].append(value)
        time.sleep(every)
    return rows


def draw(rows: dict[str, list], out: Path) -> None:
    figure, axes = plt.subplots(3, 1, figsize=(9, 8), constrained_layout=True)
    axes[0].plot([s / 60 for s in rows["seconds"]], rows["mib"])
    axes[0].set_ylabel("memory, MiB")
    axes[1].plot([s / 60 for s in rows["seconds"]], rows["files"])
    axes[1].set_ylabel("open files")
    for axis in axes[:2]:
        axis.set_xlabel("minutes")
    axes[2].plot(rows["step"], rows["ms_per_step"], ".", markersize=3)
    axes[2].set_ylabel("ms a step")
    axes[2].set_xlabel("step")
    for axis in axes:
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    figure.savefig(out, dpi=90)


def growth(values: list[float]) -> float:
    """Median of the last third ÷ that of the middle third: the first is warming up."""
    third = len(values) // 3
    return statistics.median(values[-third:]) / statistics.median(values[third : 2 * third])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--every", type=float, default=2, help="seconds between two samples")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--report-only", action="store_true", help="do not fail, however it grows")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    run = arguments.out / "run"
    command = [sys.executable, "-m", "u2pl_fast.train", *FLAGS, "--out", str(run)]
    with open(arguments.out / "train.log", "w") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        try:
            rows = watch(process, 60 * arguments.minutes, arguments.every)
        finally:
            process.terminate()
            process.wait()
    logged = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    logged = [line for line in logged if "seconds_per_step" in line]
    rows["step"] = [line["step"] for line in logged]
    rows["ms_per_step"] = [round(1e3 * line["seconds_per_step"], 1) for line in logged]
    rows["growth"] = {name: round(growth(rows[name]), 4) for name in ("mib", "files", "ms_per_step")}
    (arguments.out / "soak.json").write_text(json.dumps(rows) + "\n")
    draw(rows, arguments.out / "soak.png")
    print(f"{rows['step'][-1]} steps; last third over middle third: {rows['growth']}")
    if not arguments.report_only and (rows["growth"]["mib"] > 1.05 or rows["growth"]["files"] > 1):
        raise SystemExit("the training grows")


if __name__ == "__main__":
    main()
