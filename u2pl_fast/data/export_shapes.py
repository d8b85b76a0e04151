"""Write images of the built-in shapes data set as PNG files."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from PIL import Image

from .shapes import Shapes


@dataclass
class ExportConfig:
    """Write SPLIT_00000.png, ... ."""

    out: Path
    """Folder for the images."""
    count: int = 4
    """Number of images, from the first on."""
    split: Literal["train", "val"] = "val"


def run(config: ExportConfig) -> None:
    """Write the images. Raises ValueError if the split has fewer."""
    dataset = Shapes(config.split)
    if not 1 <= config.count <= len(dataset):
        raise ValueError(f"count: expected 1 .. {len(dataset)}, got {config.count}")
    config.out.mkdir(parents=True, exist_ok=True)
    for index in range(config.count):
        Image.fromarray(dataset.image(index)).save(config.out / f"{dataset.names[index]}.png")


def main() -> None:
    try:
        run(tyro.cli(ExportConfig, prog="python -m u2pl_fast.data.export_shapes", description=__doc__))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
