"""What one call adds, at its peak, to the memory that its inputs occupy.

On CUDA the caching allocator knows. On the CPU the operating system does: a fresh process makes the inputs, hands freed
memory back, resets the peak of its resident set, calls once, and reads the peak. Imports, thread pools and the
compiler's own needs are in place before: an eager or fused call is warmed up on a small workload, a compiled one on the
inputs themselves, since it is compiled for their shapes, and so is a training step, whose first one makes the
optimiser's state.
"""

import contextlib
import ctypes
import dataclasses
import gc
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from .registry import STEP, Call, Setting, load
from .workloads import NAMED, Workload

MIB = 2**20
TIMEOUT = 600
# glibc then returns every larger block to the system when it is freed, so that the resident set tells the truth.
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


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


def resident_growth(call: Callable[[], object]) -> float:
    """MiB on the CPU, in this process: it should be a fresh one with ``ENVIRONMENT``, which has warmed up."""
    gc.collect()
    _give_back()
    before = _start_peak()
    kept = call()
    after = _peak()
    del kept
    return max(0.0, after - before) / MIB


def allocator_growth(call: Callable[[], object]) -> float:
    """MiB on CUDA, in this process."""
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    kept = call()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated()
    del kept
    return (peak - before) / MIB


def _give_back() -> None:
    """Return freed memory to the system: the call must not hide in what making its inputs left behind."""
    with contextlib.suppress(OSError, AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)


def _start_peak() -> int:
    """Bytes resident now; the peak starts again from here where the system allows it (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    """Bytes at the peak. Not ``ru_maxrss`` on Linux: a child inherits its parent's."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


if __name__ == "__main__":
    print(measure_here(json.loads(sys.argv[1])))
