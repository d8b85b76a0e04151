"""What the doctor is told: the training's settings for the data, and a few of its own."""

import ast
import dataclasses
import inspect
import shlex
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, get_type_hints

import tyro

from ..config import DATA_SETTINGS, TrainConfig, find_config, resolve


def _help_texts() -> dict[str, str]:
    """The docstrings of the training's fields."""
    body = ast.parse(inspect.getsource(TrainConfig)).body[0].body
    return {
        field.target.id: " ".join(ast.literal_eval(text.value).split())
        for field, text in pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
    }


def _as_in_training() -> list[tuple]:
    """The fields of the training that decide which data are read; None where the training's config has the value."""
    hints, texts = get_type_hints(TrainConfig), _help_texts()
    return [
        (name, Annotated[hints[name] | None, tyro.conf.arg(help=texts[name].replace("shapes (built in), ", ""))], None)
        for name in DATA_SETTINGS
    ]


DataSettings = dataclasses.make_dataclass("DataSettings", _as_in_training())


@dataclass
class DoctorConfig(DataSettings):
    """Check a data set as a training would use it: layout, pairs of image and mask, sizes, mask values, classes, and
    images that are both trained on and scored. All problems are told, each with its fix."""

    config: str | None = None
    """YAML file of a training, or the name of a configuration, whose settings hold where no flag is given."""
    max_files: int | None = None
    """Look at so many images at most, evenly spaced; unset: at all of them."""
    json: Path | None = None
    """File for the findings, the classes' counts, and all names, lists in full."""


def settings_of(config: DoctorConfig) -> TrainConfig:
    """The training's settings for the data. Raises ValueError for what can't be used."""
    settings = TrainConfig() if config.config is None else TrainConfig.from_yaml(find_config(config.config))
    for name in DATA_SETTINGS:
        value = getattr(config, name)
        if value is not None:
            setattr(settings, name, value)
    if config.dataset is None and config.config is None:
        raise ValueError("dataset: name it with --dataset, or give the training's --config")
    return resolve(settings)


def doctor_command(config: TrainConfig) -> str:
    """The command that looks at the data of this training."""
    command = ["python", "-m", "u2pl_fast.doctor"]
    for name in DATA_SETTINGS:
        value = getattr(config, name)
        if value is not None and value != getattr(TrainConfig(), name):
            command += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, tuple) else [value])]
    return shlex.join(command)
