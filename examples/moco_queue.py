"""Keep a MoCo-style queue with ``ring_push``.

    python examples/moco_queue.py

The usual queue reads its pointer from the device, needs a capacity that is a multiple of the batch, and is cloned in
every step because the backward pass needs the old keys. ``ring_push`` accepts any number of keys, normalizes them and
never waits for the device. The loop pushes after the update, so it needs no clone.
"""

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from measure import autocast, compare
from torch import Tensor, nn

from u2pl_fast import ops

DIM, TEMPERATURE = 128, 0.2


class Before(nn.Module):
    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.register_buffer("queue", F.normalize(torch.randn(DIM, capacity), dim=0))
        self.register_buffer("pointer", torch.zeros(1, dtype=torch.long))

    def negatives(self) -> Tensor:
        return self.queue.clone().detach()

    @torch.no_grad()
    def push(self, keys: Tensor) -> None:
        start = int(self.pointer)
        assert self.queue.shape[1] % len(keys) == 0
        self.queue[:, start : start + len(keys)] = F.normalize(keys, dim=1).T
        self.pointer[0] = (start + len(keys)) % self.queue.shape[1]


class After(nn.Module):
    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.register_buffer("queue", F.normalize(torch.randn(DIM, capacity), dim=0).T.contiguous())
        self.register_buffer("offsets", torch.tensor([0, capacity]))
        self.register_buffer("pushed", torch.zeros(1, dtype=torch.long))

    def negatives(self) -> Tensor:
        return self.queue.T

    def push(self, keys: Tensor) -> None:
        every = torch.ones(len(keys), 1, dtype=torch.int32, device=keys.device)  # bit 0: class 0
        ops.ring_push(self.queue, self.offsets, self.pushed, keys, every)


def encoder() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, DIM),
    )


def build(version: str, a: argparse.Namespace) -> Callable[[], Tensor]:
    torch.manual_seed(0)
    queries, keys = encoder().to(a.device), encoder().to(a.device).requires_grad_(False)
    keys.load_state_dict(queries.state_dict())
    queue = {"before": Before, "after": After}[version](a.capacity).to(a.device)
    optimizer = torch.optim.SGD(queries.parameters(), lr=0.03)
    images = torch.rand(a.batch, 3, a.size, a.size, device=a.device)
    networks = [torch.compile(network) if a.compile else network for network in (queries, keys)]

    def step() -> Tensor:
        with autocast(a):
            q, k = F.normalize(networks[0](images).float(), dim=1), networks[1](images.flip(3)).float()
            positive = (q * F.normalize(k, dim=1)).sum(1, keepdim=True)
            scores = torch.cat((positive, q @ queue.negatives()), 1) / TEMPERATURE
            loss = F.cross_entropy(scores, torch.zeros(len(q), dtype=torch.long, device=q.device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for old, new in zip(keys.parameters(), queries.parameters(), strict=True):
                old.lerp_(new, 0.001)
        queue.push(k)
        return loss.detach()

    return step


if __name__ == "__main__":
    compare(__doc__, build, size=32, batch=64, capacity=65536)
