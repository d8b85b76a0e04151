"""Run a training loop before and after a change and compare them. The examples share this module.

    from measure import compare

    compare(__doc__, build, size=512, batch=4)

Each version runs in separate processes, in alternation. A process takes one warm-up step, then times each further step
and measures how far memory rises above its level before them (``u2pl_fast.utils.peak_memory``; torch's allocator on a
GPU).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from u2pl_fast.utils.peak_memory import ENVIRONMENT, allocator_growth, resident_growth

VERSIONS = ("before", "after")
MIB_TO_MB = 2**20 / 1e6
Build = Callable[[str, argparse.Namespace], Callable[[], Tensor]]


def small_network(classes: int) -> nn.Module:
    """Return a network whose logits have a quarter of the image size, as with most decoders."""
    return nn.Sequential(
        nn.Conv2d(3, 24, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(24, 48, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(48, classes, 1),
    )


def autocast(a: argparse.Namespace) -> torch.autocast:
    """Return a bfloat16 autocast context, enabled by ``--amp``."""
    return torch.autocast(a.device, torch.bfloat16, enabled=a.amp)


def compare(description: str, build: Build, **settings: int) -> None:
    """Run the command line of an example.

    Args:
        description: the text of ``--help``.
        build: called with the version and the parsed arguments; returns a function that runs one training step and
            returns its loss.
        settings: further flags with their defaults.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--steps", type=int, default=6, help="steps per process; the first is a warm-up")
    parser.add_argument("--rounds", type=int, default=2, help="processes per version")
    parser.add_argument("--amp", action="store_true", help="use bfloat16 autocast")
    parser.add_argument("--compile", action="store_true", help="compile the network (takes minutes on a CPU)")
    parser.add_argument("--only", choices=VERSIONS, help="run one version in this process and print JSON")
    for name, default in settings.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    for name in ("steps", "rounds", *settings):
        least = 2 if name == "steps" else 1
        if getattr(arguments, name) < least:
            parser.error(f"--{name}: at least {least}")
    if arguments.only:
        print(json.dumps(_run(build(arguments.only, arguments), arguments)))
        return
    results: dict[str, list[dict]] = {version: [] for version in VERSIONS}
    for _ in range(arguments.rounds):
        for version in VERSIONS:
            command = [sys.executable, "-W", "ignore", *sys.argv, "--only", version]
            run = subprocess.run(command, env=os.environ | ENVIRONMENT, stdout=subprocess.PIPE, text=True)
            if run.returncode:
                sys.exit(f"error: the {version!r} process failed with exit status {run.returncode}")
            results[version].append(json.loads(run.stdout.splitlines()[-1]))
    _report(results)


def _run(step: Callable[[], Tensor], arguments: argparse.Namespace) -> dict:
    losses, seconds = [float(step())], []

    def timed_steps() -> None:
        for _ in range(arguments.steps - 1):
            began = time.perf_counter()
            losses.append(float(step()))  # float() waits for the device
            seconds.append(time.perf_counter() - began)

    growth = allocator_growth if arguments.device == "cuda" else resident_growth
    return {"memory": growth(timed_steps) * MIB_TO_MB, "losses": losses, "seconds": seconds}


def _report(results: dict[str, list[dict]]) -> None:
    milliseconds, memory = {}, {}
    for version, runs in results.items():
        milliseconds[version] = 1e3 * statistics.median(second for run in runs for second in run["seconds"])
        memory[version] = statistics.median(run["memory"] for run in runs)
        losses = "  ".join(f"{loss:.5f}" for loss in runs[0]["losses"])
        print(f"{version:7} {milliseconds[version]:7.0f} ms per step  {memory[version]:6.0f} MB  losses {losses}")
    pairs = zip(*(runs[0]["losses"] for runs in results.values()), strict=True)
    print(
        f"largest loss difference: {max(abs(a - b) for a, b in pairs):.1e}; "
        f"memory saved: {memory['before'] - memory['after']:.0f} MB; "
        f"time saved: {milliseconds['before'] - milliseconds['after']:.0f} ms per step"
    )
