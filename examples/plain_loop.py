"""Change one line of an ordinary supervised segmentation loop.

    python examples/plain_loop.py

Trains with ``interpolate`` and ``cross_entropy``, then with ``upsampled_cross_entropy``, from the same weights on the
same data. Prints time per step, extra memory at the peak, and losses of both.
"""

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from measure import autocast, compare, small_network
from torch import Tensor

from u2pl_fast import ops

CLASSES = 150


def before(logits: Tensor, labels: Tensor) -> Tensor:
    full = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
    return F.cross_entropy(full, labels.long(), ignore_index=255)


def after(logits: Tensor, labels: Tensor) -> Tensor:
    return ops.upsampled_cross_entropy(logits, labels)


def build(version: str, a: argparse.Namespace) -> Callable[[], Tensor]:
    torch.manual_seed(0)
    loss_function = {"before": before, "after": after}[version]
    model = small_network(CLASSES).to(a.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    images = torch.rand(a.batch, 3, a.size, a.size, device=a.device)
    labels = (images.mean(1) * CLASSES).to(torch.uint8)
    labels[:, :8] = 255
    network = torch.compile(model) if a.compile else model

    def step() -> Tensor:
        with autocast(a):
            loss = loss_function(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


if __name__ == "__main__":
    compare(__doc__, build, size=512, batch=4)
