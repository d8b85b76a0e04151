"""``python -m u2pl_fast.train``: supervised, mean-teacher and U²PL training in one loop.

A step takes as many labeled as unlabeled images. The teacher looks at the weak views, its maps are mixed along with
the strong views, the student sees labeled and mixed images in one forward pass, and the criterion gives the losses.
"""

import os
import sys

import tyro

from .config import TrainConfig, find_config
from .data import DataError
from .doctor.settings import doctor_command
from .training.run import run

__all__ = ["main", "parse", "run"]


def main(arguments: list[str] | None = None) -> None:
    """Parse flags over an optional YAML file, train, and turn bad input into one line."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        config = parse(arguments)
        metrics = run(config)
    except DataError as error:
        sys.exit(f"error: {error}{_doctor_hint(config, error)}")
    except (ValueError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    if int(os.environ.get("RANK", 0)) == 0 and metrics["miou"] is not None:
        seconds = metrics["seconds"]
        share = metrics["loader_seconds"] / max(seconds, 1e-9)
        print(f"mIoU {metrics['miou']:.4f} ({metrics['network']}, best {metrics['best_miou']:.4f}), "
              f"{seconds:.0f} s of training, {share:.1%} of it waiting for images, in {config.out}")  # fmt: skip


def _doctor_hint(config: TrainConfig, error: DataError) -> str:
    """The command that tells all that is wrong with these data, where there are data to look at."""
    if error.kind == "process" or config.data_root is None or not config.data_root.is_dir():
        return ""
    return f"\nto see everything that is wrong with the data at once: {doctor_command(config)}"


def parse(arguments: list[str]) -> TrainConfig:
    """``--config``, a YAML file or the name of one in u2pl_fast/recipes, gives the defaults; flags override them."""
    arguments = list(arguments)
    default = TrainConfig()
    for position, argument in enumerate(arguments):
        if argument == "--config" or argument.startswith("--config="):
            inline = "=" in argument
            if not inline and position + 1 == len(arguments):
                raise ValueError("config: --config needs a file or a name")
            path = argument.split("=", 1)[1] if inline else arguments[position + 1]
            del arguments[position : position + (1 if inline else 2)]
            default = TrainConfig.from_yaml(find_config(path))
            break
    return tyro.cli(TrainConfig, args=arguments, default=default, prog="python -m u2pl_fast.train", description=__doc__)


if __name__ == "__main__":
    main()
