"""``python -m tests.faults.sigkill``: kill a training at random moments; it must end as if nothing had been.

Starts a small training, kills it with SIGKILL after a random time, starts it again with ``--resume``, and so on; then
lets it finish and compares weights, optimiser, teacher and bank with those of an undisturbed run, bit for bit.
"""

import argparse
import random
import tempfile
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from tests.training.runs import start
from u2pl_fast.saving import checkpoint

FLAGS = ["--encoder", "mobilenetv3_small_050", "--crop-size", "64", "64", "--batch-size", "2", "--num-labeled", "6"]
FLAGS += ["--workers", "1", "--threads", "1", "--device", "cpu", "--save-every", "3", "--eval-every", "1000000"]
FLAGS += ["--sup-only-epochs", "0.05", "--accumulate", "2"]
STATE = ("student", "teacher", "bank", "optimizer", "step")


def train(out: Path, steps: int, *flags: str) -> BaseProcess:
    command = [*FLAGS, "--steps", str(steps), "--resume", "--out", str(out), *flags]
    return start(command, out.with_suffix(".txt"))


def finish(process: BaseProcess, out: Path) -> None:
    process.join()
    if process.exitcode:
        raise SystemExit(f"the training failed:\n{out.with_suffix('.txt').read_text()[-3000:]}")


def step_of(out: Path) -> int:
    return checkpoint.load(out / "last.pt")["step"] if (out / "last.pt").exists() else 0


def differing(one: object, other: object, name: str = "state") -> list[str]:
    """Names of what is not equal bit for bit."""
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
    parser.add_argument("--longest", type=float, help="seconds before a kill at most; unset: a quarter of a whole run")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        straight, killed = Path(folder) / "straight", Path(folder) / "killed"
        finish(train(straight, 2, "--dry-run"), straight)  # the others then wait for no import
        began = time.monotonic()
        finish(train(straight, arguments.steps), straight)
        longest = arguments.longest or (time.monotonic() - began) / 4
        for kill in range(arguments.kills):
            process = train(killed, arguments.steps)
            moment = chance.uniform(0, longest)
            process.join(moment)
            if not process.is_alive():
                finish(process, killed)
                print(f"kill {kill + 1}: not needed, the run was over before {moment:.1f} s")
                break
            process.kill()
            process.join()
            print(f"kill {kill + 1} after {moment:.1f} s, {step_of(killed)} steps saved", flush=True)
        finish(train(killed, arguments.steps), killed)
        states = [checkpoint.load(run / "last.pt") for run in (straight, killed)]
        wrong = [d for name in STATE for d in differing(states[0][name], states[1][name], name)]
    if wrong:
        raise SystemExit(f"{len(wrong)} entries differ from the undisturbed run, first {wrong[0]}")
    print(f"{arguments.steps} steps end bit for bit as undisturbed")


if __name__ == "__main__":
    main()
