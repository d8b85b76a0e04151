"""An ordinary supervised segmentation loop, and the one line that changes in it.

    python examples/plain_loop.py

Runs the same loop twice, each in a process of its own, from the same weights and on the same data: once with
``interpolate`` + ``cross_entropy``, once with ``upsampled_cross_entropy``. Prints the losses of both, the time a step
takes, and how far the process's memory rose above what it held before the first step (on a GPU: the peak that torch
allocated).
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from u2pl_fast import ops

CLASSES, SIZE, BATCH = 150, (512, 512), 4


def before(logits: Tensor, labels: Tensor) -> Tensor:
    full = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
    return F.cross_entropy(full, labels.long(), ignore_index=255)


def after(logits: Tensor, labels: Tensor) -> Tensor:
    return ops.upsampled_cross_entropy(logits, labels)


LOSSES = {"before": before, "after": after}


def network() -> nn.Module:
    """Logits at a quarter of the image's size, as most decoders give them."""
    return nn.Sequential(
        nn.Conv2d(3, 24, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(24, 48, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(48, CLASSES, 1),
    )


def peak_memory(device: str) -> float:
    """MB: of the allocator on a GPU, of the process elsewhere."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def train(loss_function, device: str, steps: int) -> dict:
    torch.manual_seed(0)
    model = network().to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    images = torch.rand(BATCH, 3, *SIZE, device=device)
    labels = (images.mean(1) * CLASSES).to(torch.uint8)
    labels[:, :8] = 255
    loss_function(torch.zeros(1, CLASSES, 4, 4, device=device), labels[:1, :16, :16])  # loads what is loaded once
    start, losses = peak_memory(device), []
    for step in range(steps):
        if step == 1:  # the first one allocates
            began = time.perf_counter()
        loss = loss_function(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    seconds = (time.perf_counter() - began) / (steps - 1)
    return {"losses": losses, "seconds": seconds, "memory": peak_memory(device) - start}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--only", choices=LOSSES, help="run one of the two here, and print its numbers as JSON")
    arguments = parser.parse_args()
    if arguments.steps < 2:
        parser.error("--steps: at least 2, the first one is not timed")
    if arguments.only:
        print(json.dumps(train(LOSSES[arguments.only], arguments.device, arguments.steps)))
        return
    flags = ["--device", arguments.device, "--steps", str(arguments.steps)]
    results = {}
    for name in LOSSES:
        output = subprocess.check_output([sys.executable, __file__, "--only", name, *flags], text=True)
        result = results[name] = json.loads(output)
        losses = "  ".join(f"{loss:.5f}" for loss in result["losses"])
        print(f"{name:7} {result['seconds'] * 1e3:7.0f} ms a step  {result['memory']:6.0f} MB  losses {losses}")
    difference = max(abs(a - b) for a, b in zip(*(r["losses"] for r in results.values()), strict=True))
    saved = results["before"]["memory"] - results["after"]["memory"]
    print(f"largest difference of a loss: {difference:.1e}; memory saved: {saved:.0f} MB")


if __name__ == "__main__":
    main()
