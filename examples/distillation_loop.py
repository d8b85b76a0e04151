"""Distill a frozen teacher: its label for every pixel, weighted by its confidence.

    python examples/distillation_loop.py

``pixel_stats`` computes label and confidence from the teacher's low-resolution logits. It stores one byte and one float
per pixel instead of one float per pixel and class.
"""

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from measure import autocast, compare, small_network
from torch import Tensor

from u2pl_fast import ops

CLASSES = 150


def before(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    size = labels.shape[-2:]
    confidence, pseudo = F.interpolate(teacher, size=size, mode="bilinear", align_corners=False).softmax(1).max(1)
    full = F.interpolate(student, size=size, mode="bilinear", align_corners=False)
    distilled = (confidence * F.cross_entropy(full, pseudo, reduction="none")).sum() / confidence.sum()
    return F.cross_entropy(full, labels.long(), ignore_index=255) + distilled


def after(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    pseudo = ops.pixel_stats(teacher, labels.shape[-2:])
    distilled = ops.upsampled_cross_entropy(student, pseudo.label, pixel_weight=pseudo.confidence)
    return ops.upsampled_cross_entropy(student, labels) + distilled


def build(version: str, a: argparse.Namespace) -> Callable[[], Tensor]:
    torch.manual_seed(0)
    loss_function = {"before": before, "after": after}[version]
    teacher = small_network(CLASSES).to(a.device).eval().requires_grad_(False)
    student = small_network(CLASSES).to(a.device)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05)
    images = torch.rand(a.batch, 3, a.size, a.size, device=a.device)
    labels = (images.mean(1) * CLASSES).to(torch.uint8)
    labels[:, :8] = 255
    networks = [torch.compile(network) if a.compile else network for network in (student, teacher)]

    def step() -> Tensor:
        with autocast(a):
            loss = loss_function(networks[0](images), networks[1](images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


if __name__ == "__main__":
    compare(__doc__, build, size=320, batch=4)
