"""``python -m benchmarks.gpu_check.again OUT``: run each failed test once more, alone in its process.

A test that failed because another one broke the GPU context then passes. A test that fails again runs with blocking
launches, so its traceback names the launch.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .out import TESTS, append, rows
from .reporter import CRASHED
from .schedule import ROOT

MOST, SECONDS = 48, 60


def failed(path: Path) -> list[str]:
    """Return the tests whose last result is a failure."""
    last = {row["test"]: row["outcome"] for row in rows(path)}
    return [test for test, outcome in last.items() if outcome in ("failed", CRASHED)]


def run(test: str, report: Path, folder: Path) -> bool:
    """Run a test of the project in ``folder``. Return whether it passed."""
    plugin = ["-p", "benchmarks.gpu_check.reporter", "--report-to", str(report)]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *plugin, "--tb", "short", test]
    path = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH")) if p)
    environment = os.environ | {"CUDA_LAUNCH_BLOCKING": "1", "PYTHONPATH": path}
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, errors="replace", timeout=SECONDS
        )
    except subprocess.TimeoutExpired:
        append(report, {"test": test, "outcome": CRASHED, "seconds": SECONDS, "message": f"ran for {SECONDS} s"})
        print(f"FAILED {test}: ran for {SECONDS} s", flush=True)
        return False
    if done.returncode not in (0, 5):
        known = test in failed(report)  # the plugin has written it, unless the process died first
        if not known:
            append(report, {"test": test, "outcome": CRASHED, "seconds": 0, "message": f"exit {done.returncode}"})
        print(done.stdout[-6000:], f"FAILED {test}", sep="\n", flush=True)
    return done.returncode == 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check.again", description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--processes", type=int, default=max(1, (os.cpu_count() or 1) - 2))
    parser.add_argument("--folder", type=Path, default=ROOT, help="where the tests were run")
    args = parser.parse_args(argv)
    report = args.out.resolve() / TESTS
    todo = failed(report)
    with ThreadPoolExecutor(args.processes) as pool:
        passed = sum(pool.map(lambda test: run(test, report, args.folder), todo[:MOST]))
    left = f", {len(todo) - MOST} more were not tried" if len(todo) > MOST else ""
    print(f"{passed} of {min(len(todo), MOST)} tests that failed pass alone{left}")
    return int(passed < len(todo))


if __name__ == "__main__":
    sys.exit(main())
