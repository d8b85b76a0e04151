"""Measure the memory that one call adds, at its peak, to its inputs.

On CUDA, the caching allocator reports it. On the CPU, the operating system does: a new process makes the inputs,
returns freed memory, resets the peak of its resident set, calls once, and reads the peak. A warm-up first takes care of
imports, thread pools and the compiler: on a small workload for an eager or fused call, and on the same inputs for a
compiled call, which is compiled for their shapes, and for a training step, whose first call makes the state of the
optimizer.
"""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from u2pl_fast.utils.peak_memory import ENVIRONMENT, resident_growth

from .registry import STEP, Call, Setting, load
from .workloads import NAMED, Workload

TIMEOUT = 600


class MemoryUnknown(Exception):
    """Report that the child process failed, and how."""


def peak_growth(setting: Setting, impl: str) -> float:
    """Return the MiB that one call adds on the CPU, measured in a new process."""
    job = dataclasses.asdict(setting) | {"impl": impl, "threads": torch.get_num_threads()}
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.measure.memory", json.dumps(job)]
    root = Path(__file__).resolve().parents[2]
    try:
        run = subprocess.run(
            command, cwd=root, env=os.environ | ENVIRONMENT, capture_output=True, text=True, timeout=TIMEOUT
        )
    except subprocess.TimeoutExpired as error:
        raise MemoryUnknown(f"the memory measurement took more than {TIMEOUT} s") from error
    if run.returncode:
        last = run.stderr.strip().splitlines()[-1:] or [f"exit status {run.returncode}"]
        raise MemoryUnknown(f"the memory measurement failed: {last[0][:160]}")
    return float(run.stdout.split()[-1])


def measure_here(job: dict) -> float:
    """Return the MiB that one call adds in this process: the part of the child process."""
    impl = job.pop("impl")
    torch.set_num_threads(job.pop("threads"))
    sizes = {name: tuple(value) if isinstance(value, list) else value for name, value in job.pop("workload").items()}
    setting = Setting(workload=Workload(**sizes), **job)
    op = load(setting.op)
    call = Call(op, setting, impl, setting.inputs())
    if impl == "compile" or setting.passes == STEP:
        call()
    else:
        small = dataclasses.replace(setting, workload=NAMED["tiny"])
        Call(op, small, impl, small.inputs())()
    return resident_growth(call)


if __name__ == "__main__":
    print(measure_here(json.loads(sys.argv[1])))
