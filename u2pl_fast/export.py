"""``python -m u2pl_fast.export --checkpoint F --out model.safetensors``: the evaluated network without its training."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from . import checkpoint, exported


@dataclass
class ExportConfig:
    """Write one network of a checkpoint into a file that evaluate and predict take, and other tools can read."""

    checkpoint: Path
    """File that the training wrote."""
    out: Path
    """File to write; its name ends in .safetensors."""
    network: Literal["auto", "teacher", "student"] = "auto"
    """auto: the one that the training evaluated."""


def run(config: ExportConfig) -> None:
    """Export as ``config`` says.

    Raises:
        ValueError: a file cannot be read or written, or holds no such network; the message names it.
    """
    if config.out.suffix != exported.SUFFIX:
        raise ValueError(f"out: expected a name that ends in {exported.SUFFIX}, got {config.out}")
    state = checkpoint.load(config.checkpoint)
    checkpoint.check_layout(state, config.checkpoint)
    network = state["network"] if config.network == "auto" else config.network
    if not state[network]:
        raise ValueError(f"network: {config.checkpoint} holds no {network}")
    exported.save_network(config.out, state | {"network": network})


def main(arguments: list[str] | None = None) -> None:
    config = tyro.cli(ExportConfig, args=arguments, prog="python -m u2pl_fast.export", description=__doc__)
    try:
        run(config)
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(f"{config.out}: {config.out.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
