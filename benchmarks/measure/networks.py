"""``python -m benchmarks.measure.networks``: find the architectures that train with each encoder.

Each pair takes a u2pl step on random images with each recipe, `lean` and `paper`. Results go to
``benchmarks/results/networks.json``. ``python -m benchmarks.draw.tables`` makes the table of docs/models.md from it.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from u2pl_fast.config import RECIPES, TrainConfig, resolve
from u2pl_fast.data.views import padded_size
from u2pl_fast.models import ARCHITECTURES
from u2pl_fast.training.learner import Learner

from .results import RESULTS

FILE = "networks.json"
# One of each family.
ENCODERS = (
    "resnet18", "convnext_atto", "swin_tiny_patch4_window7_224", "mit_b0", "vit_tiny_patch16_224",
    "vit_small_patch14_dinov2",
)  # fmt: skip
NUM_CLASSES, SIDE = 5, 128  # pan pools three times after a stride of 16


def batch(height: int, width: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (3, 2, 3, height, width), dtype=torch.uint8, generator=generator)
    return {
        **dict(zip(("images", "weak", "strong"), images, strict=True)),
        "labels": torch.randint(0, NUM_CLASSES, (2, height, width), dtype=torch.uint8, generator=generator),
        "valid": torch.ones(2, height, width, dtype=torch.bool),
        "labeled_index": torch.arange(2),
        "unlabeled_index": torch.arange(2),
    }


def attempt(arch: str, encoder: str) -> dict:
    """Return the result of a step with each recipe, or ``error``."""
    found: dict = {"arch": arch, "encoder": encoder}
    for recipe in RECIPES:
        config = TrainConfig(
            arch=arch, encoder=encoder, encoder_weights="none", recipe=recipe, representation_dim=16,
            projection_width=16, num_anchors=16, bank_capacity=256, steps=1, device="cpu",
        )  # fmt: skip
        try:
            learner = Learner(resolve(config), NUM_CLASSES, 255, steps=1, steps_per_epoch=1, device=torch.device("cpu"))
        except ValueError as error:
            return found | {"error": str(error)}
        multiple = learner.student.pad_multiple
        side = padded_size((SIDE, SIDE), multiple)[0]
        losses = learner.train_step(batch(side, side)).losses
        if int(learner.skipped) or not losses.total.isfinite():
            return found | {"error": f"{recipe}: a step was not finite"}
        with torch.no_grad():
            output = learner.student.eval()(batch(side, side)["images"], representations=True)
        found |= {
            "logits_stride": round(side / output.logits.shape[-1], 2),
            "features_stride": round(side / output.features.shape[-1], 2),
            "multiple": multiple,
            "decoder_parameters": sum(p.numel() for p in learner.student.decoder.parameters()),
        }
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.measure.networks", description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", choices=ENCODERS, help="only this one; the results of the others are kept")
    parser.add_argument("--arch", choices=list(ARCHITECTURES), help="only this one; the results of the others are kept")
    parser.add_argument("--json", type=Path, default=RESULTS / FILE, metavar="FILE")
    args = parser.parse_args(argv)
    architectures = list(ARCHITECTURES)
    known = json.loads(args.json.read_text()) if args.json.exists() else []
    torch.set_num_threads(1)
    for encoder in [args.encoder] if args.encoder else ENCODERS:
        for arch in [args.arch] if args.arch else architectures:
            row = attempt(arch, encoder)
            print(row, flush=True)
            known = [old for old in known if (old["encoder"], old["arch"]) != (encoder, arch)] + [row]
            known.sort(key=lambda row: (ENCODERS.index(row["encoder"]), architectures.index(row["arch"])))
            args.json.write_text("[\n" + ",\n".join("  " + json.dumps(row) for row in known) + "\n]\n")


if __name__ == "__main__":
    main()
