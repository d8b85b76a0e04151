"""Describe the machine that the numbers were measured on, without its host name."""

import dataclasses
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

import u2pl_fast

from . import roofline

ROOT = Path(__file__).resolve().parents[2]
COMMIT = "U2PL_FAST_COMMIT"
CODE = ("u2pl_fast", "kernels", "csrc", "setup.py", "benchmarks/*.py", "benchmarks/measure")


def describe(device: str, *, quick: bool = False) -> dict[str, Any]:
    """Return the ``machine`` block of a results file, with its ceilings measured now."""
    return {
        "name": name(device),
        "device": device,
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "commit": commit(),
        "time": now(),
        "ceilings": dataclasses.asdict(roofline.ceilings(device, quick=quick)),
    }


def name(device: str) -> str:
    """Return the CPU model, cores and instruction set, or the name of the GPU."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    isa = torch.backends.cpu.get_cpu_capability()
    cores = torch.multiprocessing.cpu_count()
    return f"{_cpu_model()}, {cores} cores, {isa}"


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def versions() -> dict[str, str | None]:
    try:
        from triton import __version__ as triton
    except ImportError:
        triton = None
    return {
        "u2pl_fast": u2pl_fast.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": triton,
    }


def commit() -> str:
    """Return the commit of the code, with "+" if files that could change a number differ from it.

    Outside of git, return the environment variable ``U2PL_FAST_COMMIT``, or "unknown".
    """

    def git(*arguments: str) -> str | None:
        try:
            run = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return run.stdout.strip() if run.returncode == 0 else None

    head = git("rev-parse", "--short=12", "HEAD")
    if head is None:
        return os.environ.get(COMMIT, "unknown")
    return head + ("+" if git("status", "--porcelain", "--", *CODE) else "")


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
