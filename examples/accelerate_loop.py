"""Use the fused loss of Hugging Face's SegFormer in an Accelerate loop.

    python examples/accelerate_loop.py

The only change is one call of ``apply()``, which puts the fused loss into SegFormer's ``forward``. Call it before
``Accelerator.prepare``, which keeps the ``forward`` that it finds. Needs transformers and accelerate.
"""

import argparse
import itertools
from collections.abc import Callable

import torch
from accelerate import Accelerator
from measure import compare
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from u2pl_fast.compat import transformers as fused_loss

CLASSES = 150


def build(version: str, a: argparse.Namespace) -> Callable[[], Tensor]:
    if version == "after":
        fused_loss.apply()
    torch.manual_seed(0)
    accelerator = Accelerator(mixed_precision="bf16" if a.amp else "no", cpu=a.device == "cpu")
    config = SegformerConfig(num_labels=CLASSES, hidden_dropout_prob=0.0, drop_path_rate=0.0)
    config.classifier_dropout_prob = 0.0
    model = SegformerForSemanticSegmentation(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-5)
    images = torch.rand(a.batch, 3, a.size, a.size)
    labels = (images.mean(1) * CLASSES).long()
    labels[:, :8] = 255
    loader = DataLoader([{"pixel_values": x, "labels": y} for x, y in zip(images, labels, strict=True)], a.batch)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    network = torch.compile(model) if a.compile else model
    batches = itertools.chain.from_iterable(itertools.repeat(loader))

    def step() -> Tensor:
        loss = network(**next(batches)).loss
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()
        return loss.detach()

    return step


if __name__ == "__main__":
    compare(__doc__, build, size=256, batch=4)
