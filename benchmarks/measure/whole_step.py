"""Check a whole training step on a GPU: how often Python waits for the device, and whether one CUDA graph can hold it.

A step has three things that a graph cannot hold, because they belong to Python: it seeds generators, it sends a few
small tensors (where CutMix cuts), and its optimizer keeps the learning rate as a number. ``capturable`` makes them the
same at each call. This is enough to capture the step, to compare a replay with the step itself, and to time it without
Python. It is a measurement, not a way to train: every replay repeats the same draws.
"""

import argparse
import json
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from u2pl_fast import mixing
from u2pl_fast.training import learner as learner_module
from u2pl_fast.training.learner import Learner

WARM_UPS = 3
WAITED = (
    "called a synchronizing CUDA operation"  # torch warns so each time; once it also warns that this is a prototype
)
AGREES = {"losses": 1e-2}  # networks in bfloat16, whose cuDNN algorithms may differ between two calls
MOVES_ALIKE = 0.5  # of how far a step moves: AdamW's first steps follow signs, which rounding turns
METHODS = {"mean-teacher": {"method": "mean-teacher"}, "u2pl-lean": {}, "u2pl-paper": {"recipe": "paper"}}
Losses = tuple[Tensor, ...]


def waits(call: Callable[[], object]) -> list[str]:
    """Return what makes Python wait for the GPU during ``call``: the line of code, once for each wait."""
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return [f"{w.filename}:{w.lineno}" for w in caught if WAITED in str(w.message)]


class Repeated:
    """Hold a learner whose every step is the same: its number, its draws and what it sends."""

    def __init__(self, learner: Learner, batch: dict[str, Tensor]) -> None:
        self.learner, self.batch = learner, batch
        self.number, self.updates = learner.step, learner.teacher.updates
        self.draws = torch.Generator(device=learner.device)
        self._sent: list[Tensor] = []
        self._position = 0
        for group in learner.optimizer.param_groups:
            group["capturable"] = True

    def step(self) -> Losses:
        self.learner.step, self.learner.teacher.updates, self._position = self.number, self.updates, 0
        with capturable(self):
            losses = self.learner.train_step(self.batch).losses
        return losses.supervised, losses.unsupervised, losses.contrastive

    def send(self, x: Tensor, device: torch.device | str | None) -> Tensor:
        """Return the tensor that this step sent here before; in the first step, send it."""
        if device is None:
            return x
        if self._position == len(self._sent):
            self._sent.append(x.to(device))
        self._position += 1
        return self._sent[self._position - 1]


@contextmanager
def capturable(repeated: Repeated) -> Iterator[None]:
    """Keep a step of the learner from sending or seeding anything on the device, within the block."""

    def seeded(*key: Any, device: torch.device | None = None) -> torch.Generator:
        return repeated.draws

    with (
        mock.patch.object(mixing, "_send", repeated.send),
        mock.patch.object(learner_module, "generator", seeded),
        mock.patch.object(torch, "manual_seed", lambda seed: None),
    ):
        yield


def state(learner: Learner) -> dict[str, list[Tensor]]:
    """Return every tensor that a step changes, in groups whose numbers are of similar size."""
    roots = {"student": learner.student, "teacher": learner.teacher.module, "bank": learner.criterion}
    found = {name: [*root.parameters(), *root.buffers()] for name, root in roots.items()}
    moments = [x for values in learner.optimizer.state.values() for x in values.values() if torch.is_tensor(x)]
    return found | {"optimizer": moments}


def captured(repeated: Repeated) -> tuple[torch.cuda.CUDAGraph, Losses]:
    """Return (the graph of one step, its losses after a replay). Capturing moves the learner by some warm-up steps."""
    graph = torch.cuda.CUDAGraph()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UPS):
            repeated.step()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph.register_generator_state(repeated.draws)
    with torch.cuda.graph(graph):
        losses = repeated.step()
    return graph, losses


@torch.no_grad()
def replay_agrees(repeated: Repeated, graph: torch.cuda.CUDAGraph, losses: Losses) -> dict[str, float]:
    """Return how far a replay is from the step itself, both from the same state: 0 is the same.

    Losses are compared relative to their size, and the groups of ``state`` relative to how far the step moved them, so
    a replay that moves nothing is at 1. Integers are at 1 if any differs.
    """
    live = state(repeated.learner)
    before = {name: [x.clone() for x in group] for name, group in live.items()}
    draws, dropout = repeated.draws.get_state(), torch.cuda.get_rng_state()

    def restore() -> None:
        for name, group in live.items():
            for x, old in zip(group, before[name], strict=True):
                x.copy_(old)
        repeated.draws.set_state(draws)
        torch.cuda.set_rng_state(dropout)

    graph.replay()
    torch.cuda.synchronize()
    replayed_losses = [x.clone() for x in losses]
    replayed = {name: [x.clone() for x in group] for name, group in live.items()}
    restore()
    with torch.enable_grad():
        plain = repeated.step()
    found = {"losses": _apart(replayed_losses, plain) / max(_size(plain), 1e-30)}
    for name, group in live.items():
        moved = _apart(before[name], group)
        same = all(torch.equal(a, b) for a, b in zip(replayed[name], group, strict=True) if not a.is_floating_point())
        found[name] = _apart(replayed[name], group) / max(moved, 1e-30) if same else float("inf")
    return found


def _size(tensors: Sequence[Tensor]) -> float:
    """Return the norm over the floating-point numbers of all tensors."""
    return sum(float(x.detach().double().square().sum()) for x in tensors if x.is_floating_point()) ** 0.5


def _apart(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    pairs = [(a, b) for a, b in zip(one, other, strict=True) if a.is_floating_point()]
    return _size([a.detach().double() - b.detach().double() for a, b in pairs])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the checks. Exit status: 1 if a step waits for the GPU, cannot be captured, or replays something else."""
    from . import step
    from .inputs import Inputs
    from .workloads import NAMED, trained

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.measure.whole_step", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--workload", choices=list(NAMED), default="camvid")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        parser.error("torch sees no GPU here")
    inputs = Inputs(trained(NAMED[args.workload]), "cuda", torch.bfloat16, "channels_last", "capped")
    batch, failed = step.batch(inputs), False
    for method, choices in METHODS.items():
        learner = step.learner(inputs, **choices)
        for _ in range(2):  # kernels are compiled, the optimizer makes its state
            learner.train_step(batch)
        lines = waits(lambda learner=learner: learner.train_step(batch))
        failed |= bool(lines)
        print(f"RESULT {json.dumps({'check': 'waits', 'method': method, 'count': len(lines), 'lines': lines})}")
    repeated = Repeated(step.learner(inputs), batch)
    distance = replay_agrees(repeated, *captured(repeated))
    failed |= not all(d <= AGREES.get(name, MOVES_ALIKE) for name, d in distance.items())
    print(f"RESULT {json.dumps({'check': 'whole step as a graph', 'distance': distance})}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
