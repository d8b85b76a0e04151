"""Kill a training at random moments and check the result: ``python -m tests.faults.sigkill``.

Start a small training, kill it with SIGKILL after a random time, and start it again with ``--resume``, several times.
Then let it finish, and compare weights, optimizer, teacher and bank with those of an undisturbed run, bit for bit.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from u2pl_fast.saving import checkpoint

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ["--encoder", "mobilenetv3_small_050", "--crop-size", "64", "64", "--batch-size", "2", "--num-labeled", "6"]
FLAGS += ["--workers", "1", "--threads", "1", "--device", "cpu", "--save-every", "3", "--eval-every", "1000000"]
FLAGS += ["--sup-only-epochs", "0.05", "--accumulate", "2"]
STATE = ("student", "teacher", "bank", "optimizer", "step")


def start(out: Path, steps: int, *flags: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "u2pl_fast.train", *FLAGS, "--steps", str(steps), "--resume", "--out", str(out)]
    command += flags
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> None:
    _, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"the training failed:\n{errors[-3000:]}")


def step_of(out: Path) -> int:
    return checkpoint.load(out / "last.pt")["step"] if (out / "last.pt").exists() else 0


def differing(one: object, other: object, name: str = "state") -> list[str]:
    """Return the names of entries that are not equal bit for bit."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        same = one.dtype == other.dtype and one.shape == other.shape
        same = same and torch.equal(
            one.contiguous().view(-1).view(torch.uint8), other.contiguous().view(-1).view(torch.uint8)
        )
        return [] if same else [name]
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [d for key in one for d in differing(one[key], other[key], f"{name}.{key}")]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        return [d for i, (a, b) in enumerate(zip(one, other, strict=True)) for d in differing(a, b, f"{name}.{i}")]
    return [] if one == other else [name]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--longest", type=float, help="most seconds before a kill; default: twice the startup time")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        straight, killed = Path(folder) / "straight", Path(folder) / "killed"
        began = time.monotonic()
        finish(start(straight, arguments.steps, "--stop-after", "2"))
        longest = arguments.longest or 2 * (time.monotonic() - began)
        finish(start(straight, arguments.steps))
        for kill in range(arguments.kills):
            process = start(killed, arguments.steps)
            moment = chance.uniform(0, longest)
            try:
                process.wait(moment)
                finish(process)
                print(f"kill {kill + 1}: not needed, the run finished before {moment:.1f} s")
                break
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
            print(f"kill {kill + 1} after {moment:.1f} s, {step_of(killed)} steps saved", flush=True)
        finish(start(killed, arguments.steps))
        states = [checkpoint.load(run / "last.pt") for run in (straight, killed)]
        wrong = [d for name in STATE for d in differing(states[0][name], states[1][name], name)]
    if wrong:
        raise SystemExit(f"{len(wrong)} entries differ from the undisturbed run, first {wrong[0]}")
    print(f"{arguments.steps} steps equal the undisturbed run bit for bit")


if __name__ == "__main__":
    main()
