"""What one call adds, at its peak, to the memory that its inputs occupy.

On CUDA the caching allocator knows. On the CPU the operating system does: a fresh process makes the inputs, hands freed
memory back, resets the peak of its resident set, calls once, and reads the peak. Imports, thread pools and the
compiler's own needs are in place before: an eager or fused call is warmed up on a small workload, a compiled one on the
inputs themselves, since it is compiled for their shapes, and so is a training step, whose first one makes the
optimizer's state.
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
    """The child process failed; the text says how."""


def peak_growth(setting: Setting, impl: str) -> float:
    """MiB on the CPU, in a fresh process."""
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
    """The child's side: MiB that one call adds in this process."""
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
