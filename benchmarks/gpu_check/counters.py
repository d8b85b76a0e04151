"""``python -m benchmarks.gpu_check.counters OUT``: read hardware counters of the slowest kernels with Nsight Compute.

The kernels are chosen from OUT/results.json: those of the `voc` workload in float32 that took longest. The counters go
to OUT/counters.json.
"""

import argparse
import csv
import functools
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from u2pl_fast.utils.atomic import write_text

from ..measure import machine, results
from .out import COUNTERS, RESULTS
from .schedule import ROOT

HEAVIEST = 5
PATIENCE = 34  # seconds
WORKLOAD, DTYPE, LAYOUT = "voc", "float32", "contiguous"
METRICS = {
    "gpu__time_duration.sum": "time",
    "dram__bytes.sum": "bytes from memory",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "% of memory bandwidth",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed": "% of SM throughput",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "% occupancy",
    "smsp__issue_active.avg.pct_of_peak_sustained_active": "% issue slots",
    "sm__inst_executed_pipe_xu.avg.pct_of_peak_sustained_active": "% special functions",
    "smsp__inst_executed.sum": "warp instructions",
    "launch__registers_per_thread": "registers",
}


@functools.cache
def own() -> tuple[str, ...]:
    """Return the names of the project's kernels, from their sources; torch's kernels are not measured."""
    found: list[str] = []
    for pattern, definition in (("kernels/*.py", r"^def (\w+_kernel)\("), ("csrc/cuda/*.cu", r"(\w+_kernel)\(\w+::")):
        for path in sorted(ROOT.glob(pattern)):
            found += re.findall(definition, path.read_text(), re.MULTILINE)
    return tuple(found)


def name_of(kernel: str) -> str | None:
    """Return which of the project's kernels a profiler means: it adds namespaces, template arguments, a signature."""
    return next((name for name in own() if re.search(rf"\b{name}\b", kernel)), None)


def heaviest(data: dict[str, Any], count: int = HEAVIEST) -> dict[str, str]:
    """Return the op that launches each kernel, by name of the kernel, the slowest first."""
    times: dict[str, tuple[float, str]] = {}
    for row in data.get("kernels", ()):
        if (row["workload"], row["dtype"], row["layout"]) != (WORKLOAD, DTYPE, LAYOUT):
            continue
        if row["op"] == "contrastive_loss":  # this op launches the kernels of the others
            continue
        for kernel in row["kernels"]:
            name = name_of(kernel["kernel"])
            if name and kernel["ms"] > times.get(name, (0.0, ""))[0]:
                times[name] = kernel["ms"], row["op"]
    ranked = sorted(times, key=lambda name: -times[name][0])
    return {name: times[name][1] for name in ranked[:count]}


def parsed(lines: Iterable[str]) -> list[dict[str, str]]:
    """Return a dict for each launch, from the "raw" page as CSV: a row of names, one of units, then launches."""
    rows = list(csv.reader(line for line in lines if line.startswith('"')))
    if len(rows) < 3:
        return []
    header, units, launches = rows[0], rows[1], rows[2:]
    columns = [(i, name) for i, name in enumerate(header) if name in METRICS or name == "Kernel Name"]
    return [
        {("kernel" if name == "Kernel Name" else name): f"{row[i]} {units[i]}".strip() for i, name in columns}
        for row in launches
    ]


def profiler() -> str | None:
    """Return the path of Nsight Compute."""
    found = sorted(Path("/opt/nvidia/nsight-compute").glob("*/ncu")) + [Path("/usr/local/cuda/bin/ncu")]
    return shutil.which("ncu") or next((str(path) for path in found if path.exists()), None)


def _run(command: list[str]) -> str:
    """Return what a command prints. It is stopped before its stage is, and its output until then counts."""
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    try:
        return process.communicate(timeout=PATIENCE)[0]
    except subprocess.TimeoutExpired:
        process.terminate()
        return process.communicate()[0]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_check.counters", description=__doc__.splitlines()[0]
    )
    parser.add_argument("out", type=Path)
    args = parser.parse_args(argv)
    chosen = heaviest(results.load(args.out / RESULTS))
    if not chosen:
        print("FAILED no kernel of the `voc` workload is in results.json")
        return 1
    ncu = profiler()
    if ncu is None:
        print("FAILED ncu is not found")
        return 1
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "ncu.csv"
        watched = [ncu, "--clock-control", "none", "--csv", "--page", "raw", "--log-file", str(log)]
        watched += ["--metrics", ",".join(METRICS), "--kernel-name", f"regex:{'|'.join(chosen)}"]
        program = [sys.executable, "-m", "benchmarks.measure.exercise", "--workload", WORKLOAD, "--dtype", DTYPE]
        program += ["--layout", LAYOUT, "--op", *dict.fromkeys(chosen.values())]
        printed = _run([*watched, *program])
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    launches = parsed(lines)
    last = {row["kernel"]: row for row in launches}  # the last launch of each kernel, when everything is warm
    if not last:
        print(printed[-2000:], *lines[-10:], "FAILED ncu measured nothing", sep="\n")
        return 1
    rows = [{"workload": WORKLOAD, "dtype": DTYPE, "layout": LAYOUT, **row} for row in last.values()]
    data = {"machine": machine.name("cuda"), "commit": machine.commit(), "time": machine.now(), "kernels": rows}
    write_text(args.out / COUNTERS, json.dumps(data, indent=1) + "\n")
    for row in rows:
        print(", ".join([row["kernel"], *(f"{label} {row[m]}" for m, label in METRICS.items() if m in row)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
