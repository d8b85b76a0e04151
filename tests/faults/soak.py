"""Check that a long training does not grow: ``python -m tests.faults.soak --minutes 30 --out DIR``.

Train in a separate process, and sample the memory, the open files and the CPU time of it and its loader processes.
Write ``soak.json`` and ``soak.png``. Fail if the last third needs more than 5 % more memory or 10 % more CPU time per
step than the middle third, or more open files. CPU time is used since other load changes the time on a clock.
"""

import argparse
import json
import os
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
    """Return the /proc folders of a process and its descendants."""
    found, queue = [], [pid]
    while queue:
        here = Path(f"/proc/{queue.pop()}")
        try:
            children = [int(x) for t in (here / "task").iterdir() for x in (t / "children").read_text().split()]
        except OSError:  # the process has ended
            continue
        found.append(here)
        queue += children
    return found


def sample(pid: int) -> tuple[float, int, float]:
    """Return the MiB of this family's own data, its open files, and its CPU seconds so far.

    Libraries are not counted: their share grows when another program that maps them ends.
    """
    memory = files = ticks = 0
    for here in family(pid):
        try:
            rollup = (here / "smaps_rollup").read_text().splitlines()
            memory += next(int(line.split()[1]) for line in rollup if line.startswith("Pss_Anon:"))
            files += len(list((here / "fd").iterdir()))
            ticks += sum(int(x) for x in (here / "stat").read_text().rpartition(")")[2].split()[11:13])
        except OSError:
            continue
    return memory / 1024, files, ticks / os.sysconf("SC_CLK_TCK")


def last_step(log: Path) -> int:
    try:
        lines = log.read_text().splitlines()
    except OSError:  # the run has not started
        return 0
    return next((step for line in reversed(lines) if (step := json.loads(line).get("step"))), 0)


def expect_running(process: subprocess.Popen) -> None:
    if process.poll() is not None:
        raise SystemExit(f"the training ended early with exit status {process.returncode}")


def watch(process: subprocess.Popen, log: Path, seconds: float, every: float) -> dict[str, list]:
    """Collect samples for ``seconds``, from the first logged step on."""
    rows: dict[str, list] = {"seconds": [], "mib": [], "files": [], "cpu_seconds": [], "step": []}
    while last_step(log) == 0:
        expect_running(process)
        time.sleep(0.2)
    began = time.monotonic()
    while (now := time.monotonic() - began) < seconds:
        expect_running(process)
        memory, files, cpu = sample(process.pid)
        values = (round(now, 1), round(memory, 1), files, round(cpu, 2), last_step(log))
        for name, value in zip(rows, values, strict=True):
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
    axes[2].plot([minute for minute, _ in step_costs(rows)], [cost for _, cost in step_costs(rows)], ".-")
    axes[2].set_ylabel("CPU ms a step")
    axes[2].set_xlabel("minutes")
    for axis in axes:
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    figure.savefig(out, dpi=90)


def step_costs(rows: dict[str, list]) -> list[tuple[float, float]]:
    """Return (minute, CPU ms per step) over about 30 windows, including evaluations and saves."""
    window = rows["seconds"][-1] / 30
    costs, first = [], 0
    for i, now in enumerate(rows["seconds"]):
        steps = rows["step"][i] - rows["step"][first]
        if now - rows["seconds"][first] >= window and steps:
            costs.append((now / 60, 1e3 * (rows["cpu_seconds"][i] - rows["cpu_seconds"][first]) / steps))
            first = i
    return costs


def growth(values: list[float]) -> float:
    """Return the median of the last third / that of the middle third; the first third is warm-up."""
    third = len(values) // 3
    if third == 0:
        return float("nan")
    return statistics.median(values[-third:]) / statistics.median(values[third : 2 * third])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--every", type=float, default=2, help="seconds between two samples")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--report-only", action="store_true", help="do not fail if it grows")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    run = arguments.out / "run"
    command = [sys.executable, "-m", "u2pl_fast.train", *FLAGS, "--out", str(run)]
    with open(arguments.out / "train.log", "w") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        try:
            rows = watch(process, run / "log.jsonl", 60 * arguments.minutes, arguments.every)
        finally:
            process.terminate()
            process.wait()
    series = {"mib": rows["mib"], "files": rows["files"], "cpu_ms_per_step": [cost for _, cost in step_costs(rows)]}
    rows["growth"] = {name: round(growth(values), 4) for name, values in series.items()}
    (arguments.out / "soak.json").write_text(json.dumps(rows) + "\n")
    draw(rows, arguments.out / "soak.png")
    print(f"{rows['step'][-1]} steps; last third over middle third: {rows['growth']}")
    limits = {"mib": 1.05, "files": 1.0, "cpu_ms_per_step": 1.1}
    if not arguments.report_only and any(rows["growth"][name] > limit for name, limit in limits.items()):
        raise SystemExit("the training grows")


if __name__ == "__main__":
    main()
