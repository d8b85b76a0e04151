"""Use the low-resolution logits of a segmentation-models-pytorch network.

    python examples/smp_loop.py

A head is ``Sequential(convolution, upsampling, activation)`` with aligned corners. The fused loss needs only the
convolution. ``model(images)`` still works everywhere else. Needs segmentation-models-pytorch.
"""

import argparse
from collections.abc import Callable

import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from measure import autocast, compare
from torch import Tensor, nn

from u2pl_fast import ops

CLASSES = 60


def before(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(model(images), labels.long(), ignore_index=255)


def after(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    logits = model.segmentation_head[0](model.decoder(model.encoder(images)))
    return ops.upsampled_cross_entropy(logits, labels, align_corners=True)


def build(version: str, a: argparse.Namespace) -> Callable[[], Tensor]:
    torch.manual_seed(0)
    loss_function = {"before": before, "after": after}[version]
    model = smp.FPN("resnet18", encoder_weights=None, classes=CLASSES, decoder_dropout=0.0).to(a.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    images = torch.rand(a.batch, 3, a.size, a.size, device=a.device)
    labels = (images.mean(1) * CLASSES).to(torch.uint8)
    labels[:, :8] = 255
    if a.compile:
        model.encoder.compile()
        model.decoder.compile()

    def step() -> Tensor:
        with autocast(a):
            loss = loss_function(model, images, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


if __name__ == "__main__":
    compare(__doc__, build, size=256, batch=4)
