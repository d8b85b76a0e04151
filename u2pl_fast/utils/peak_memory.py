"""Measure the peak memory that one call adds to the memory in use before it."""

import contextlib
import ctypes
import gc
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import torch

MIB = 2**20
# glibc then returns freed large blocks to the system at once, so the resident set equals the memory in use.
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def resident_growth(call: Callable[[], object]) -> float:
    """Return MiB on the CPU. Run it in a new process with ``ENVIRONMENT``, after a warm-up."""
    gc.collect()
    _give_back()
    before = _start_peak()
    kept = call()
    after = _peak()
    del kept
    return max(0.0, after - before) / MIB


def allocator_growth(call: Callable[[], object]) -> float:
    """Return MiB on CUDA."""
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
    """Return freed memory to the system, so that the call cannot reuse it unseen."""
    with contextlib.suppress(OSError, AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)


def _start_peak() -> int:
    """Return the resident bytes, and reset the peak to them if the system supports it (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    """Return the peak in bytes. On Linux ``ru_maxrss`` does not work: a child inherits its parent's."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
