"""``python -m tests.docs.sample``: write what the blocks of pages read, small: images, a finished run, photos.

Files in the current folder: ``mydata`` (6 training images, 4 of them with masks, and 2 validation images),
``runs/mine`` (a run of two steps on it), ``photos``, ``scans``, and single photos.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

import u2pl_fast

NAMES = ("background", "road", "tree")
SIZE = (64, 96)
PHOTOS = ("one.jpg", "photo.jpg", "photo.png", "a.jpg", "b.jpg")
SMALL = {"encoder": "resnet10t", "encoder_weights": "none", "crop_size": (48, 64), "representation_dim": 16}


def image_and_label(rng: np.random.Generator) -> tuple[Image.Image, Image.Image]:
    """Return an image of stripes with noise, and the class of each pixel."""
    label = np.repeat(rng.integers(len(NAMES), size=(SIZE[0] // 16, SIZE[1] // 16)), 16, 0).repeat(16, 1)
    noise = rng.integers(0, 60, (*SIZE, 3))
    return Image.fromarray((label[..., None] * 90 + noise).astype(np.uint8)), Image.fromarray(label.astype(np.uint8))


def write_data(root: Path) -> None:
    """Write a folder data set."""
    rng = np.random.default_rng(0)
    for split, count, labeled in (("train", 6, 4), ("val", 2, 2)):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        for index in range(count):
            image, label = image_and_label(rng)
            image.save(root / "images" / split / f"{index}.jpg")
            if index < labeled:
                label.save(root / "labels" / split / f"{index}.png")
    (root / "classes.txt").write_text("\n".join(NAMES))


def write_photos() -> None:
    """Write images without masks, under the names that pages use."""
    rng = np.random.default_rng(1)
    Path("photos").mkdir()
    Path("scans/1").mkdir(parents=True)
    for name in ("photos/1.jpg", "photos/2.jpg", "scans/1/1.tif", *PHOTOS):
        image_and_label(rng)[0].save(name)


def main() -> None:
    argparse.ArgumentParser(prog="python -m tests.docs.sample", description=__doc__.splitlines()[0]).parse_args()
    write_data(Path("mydata"))
    write_photos()
    u2pl_fast.train(
        dataset="folder", data_root="mydata", steps=2, batch_size=2, workers=0, device="cpu", out="runs/mine", **SMALL
    )


if __name__ == "__main__":
    main()
