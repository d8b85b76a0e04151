"""Use the low-resolution logits of torchvision's ``deeplabv3_resnet50``.

    python examples/torchvision_loop.py

``forward`` upsamples the logits from 1/8 of the image size, with ``align_corners=False``. To skip that, the loop calls
backbone and classifiers directly. Needs torchvision.
"""

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from measure import autocast, compare
from torch import Tensor, nn
from torchvision.models.segmentation import deeplabv3_resnet50

from u2pl_fast import ops

CLASSES = 21


def before(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    out = model(images)
    main, auxiliary = (F.cross_entropy(out[name], labels.long(), ignore_index=255) for name in ("out", "aux"))
    return main + 0.5 * auxiliary


def after(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    features = model.backbone(images)
    main = ops.upsampled_cross_entropy(model.classifier(features["out"]), labels)
    auxiliary = ops.upsampled_cross_entropy(model.aux_classifier(features["aux"]), labels)
    return main + 0.5 * auxiliary


def build(version: str, a: argparse.Namespace) -> Callable[[], Tensor]:
    torch.manual_seed(0)
    loss_function = {"before": before, "after": after}[version]
    model = deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=CLASSES, aux_loss=True).to(a.device)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # so that both versions compute the same loss
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    images = torch.rand(a.batch, 3, a.size, a.size, device=a.device)
    labels = (images.mean(1) * CLASSES).to(torch.uint8)
    labels[:, :8] = 255
    if a.compile:
        model.backbone.compile()
        model.classifier.compile()

    def step() -> Tensor:
        with autocast(a):
            loss = loss_function(model, images, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


if __name__ == "__main__":
    compare(__doc__, build, size=192, batch=2)
