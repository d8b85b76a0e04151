"""Train as FixMatch and UniMatch do: weak views give pseudo-labels for two strong views.

    python examples/consistency_loop.py

``pixel_stats`` computes label and confidence of every pixel from the low-resolution logits. The mask of confident
pixels is the ``pixel_weight`` of ``upsampled_cross_entropy``. As in UniMatch, the sum is divided by all valid pixels.
"""

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from measure import autocast, compare, small_network
from torch import Tensor

from u2pl_fast import ops

CLASSES, THRESHOLD = 60, 0.05  # use 0.95 in a real run; an untrained network is never that confident


def upsample(logits: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def before(weak: Tensor, strong: Tensor, supervised: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
    size = labels.shape[-2:]
    confidence, pseudo = upsample(weak.detach(), size).softmax(1).max(1)
    keep = (confidence >= THRESHOLD) & valid
    loss = F.cross_entropy(upsample(supervised, size), labels.long(), ignore_index=255)
    for view in strong.chunk(2):
        each = F.cross_entropy(upsample(view, size), pseudo, reduction="none")
        loss = loss + 0.5 * (each * keep).sum() / valid.sum()
    return loss


def after(weak: Tensor, strong: Tensor, supervised: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
    pseudo = ops.pixel_stats(weak, labels.shape[-2:])
    keep = (pseudo.confidence >= THRESHOLD) & valid
    loss = ops.upsampled_cross_entropy(supervised, labels)
    for view in strong.chunk(2):
        each = ops.upsampled_cross_entropy(view, pseudo.label, pixel_weight=keep, reduction="sum")
        loss = loss + 0.5 * each / valid.sum()
    return loss


def build(version: str, a: argparse.Namespace) -> Callable[[], Tensor]:
    torch.manual_seed(0)
    loss_function = {"before": before, "after": after}[version]
    model = small_network(CLASSES).to(a.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    labeled, weak = torch.rand(2, a.batch, 3, a.size, a.size, device=a.device)
    strong = torch.cat((weak * 0.7, (weak + 0.3 * torch.rand_like(weak)).clamp(max=1)))
    labels = (labeled.mean(1) * CLASSES).to(torch.uint8)
    valid = torch.ones_like(labels, dtype=torch.bool)
    labels[:, :8], valid[:, -8:] = 255, False
    network = torch.compile(model) if a.compile else model

    def step() -> Tensor:
        with autocast(a):
            supervised, weak_logits, strong_logits = network(torch.cat((labeled, weak, strong))).split(
                (a.batch, a.batch, 2 * a.batch)
            )
            loss = loss_function(weak_logits, strong_logits, supervised, labels, valid)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


if __name__ == "__main__":
    compare(__doc__, build, size=320, batch=2)
