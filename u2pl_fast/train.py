"""Train a network: supervised, mean-teacher or U²PL.

Each step takes labeled and unlabeled images. The teacher labels lightly changed (weak) views of the unlabeled images.
The student learns these labels on strongly changed views, and the masks of the labeled images.
"""

import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

from .config import RECIPE_FILES, TrainConfig, find_config
from .data import DataError
from .doctor.settings import doctor_command
from .training.record import Run
from .training.run import run
from .utils.callable_module import make_callable
from .utils.command_line import parse as parse_flags

__all__ = ["main", "parse", "run", "train"]


def train(config: TrainConfig | str | Path | None = None, **settings: Any) -> Run:
    """Train a network and return its run. Same as ``u2pl train``.

    Args:
        config: a :class:`TrainConfig`, a YAML file, or the name of a configuration such as ``"folder-small"``;
            None = the defaults.
        **settings: fields of :class:`TrainConfig`; they override ``config``.

    Returns:
        The run with ``miou``, ``checkpoint``, ``metrics`` and ``log``. ``run.load()`` returns its network.

    Raises:
        ValueError: a setting, file or folder cannot be used; the message names it.
        FloatingPointError: the loss or gradient of ``max_skipped`` steps in a row was not finite.

    Examples:
        >>> import u2pl_fast
        >>> run = u2pl_fast.train(steps=2, num_labeled=2, batch_size=2, out="runs/example")  # doctest: +SKIP
        >>> model = run.load()  # doctest: +SKIP
    """
    given = TrainConfig.from_dict(settings, "train")
    if config is None:
        chosen = TrainConfig()
    else:
        chosen = config if isinstance(config, TrainConfig) else TrainConfig.from_yaml(find_config(str(config)))
    chosen = dataclasses.replace(chosen, **{name: getattr(given, name) for name in settings})
    metrics = run(chosen)
    return Run(chosen.out, chosen.to_dict(), [], metrics, []) if chosen.dry_run else Run.read(chosen.out)


def main(arguments: list[str] | None = None) -> None:
    """Parse flags over an optional YAML file, train, and print bad input as one line."""
    arguments = sys.argv[1:] if arguments is None else arguments
    config = TrainConfig()
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
        print(
            f"mIoU {metrics['miou']:.4f} ({metrics['network']}, best {metrics['best_miou']:.4f}); "
            f"{seconds:.0f} s of training, {share:.1%} waiting for images; results in {config.out}"
        )


def _doctor_hint(config: TrainConfig, error: DataError) -> str:
    """Return the command that lists every problem of the data, if there are data."""
    if error.kind == "process" or config.data_root is None or not config.data_root.is_dir():
        return ""
    return f"\nto list every problem of the data: {doctor_command(config)}"


def parse(arguments: list[str]) -> TrainConfig:
    """Return the settings of flags over those of ``--config``, a YAML file or the name of one in u2pl_fast/recipes.

    Raises:
        ValueError: the file cannot be used, or a flag has a new name.
    """
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
    return parse_flags(TrainConfig, arguments, command="train", description=DESCRIPTION, default=default)


DESCRIPTION = f"""{__doc__}
--config FILE or NAME: read settings from a YAML file or a built-in configuration; flags override them. Built in:
{", ".join(sorted(file.stem for file in RECIPE_FILES.glob("*.yaml")))}.

Example: u2pl train --config folder-small --data-root mydata --out runs/mine"""


make_callable(__name__)  # u2pl_fast.train(...) works although `import u2pl_fast.train` binds the module to that name

if __name__ == "__main__":
    main()
