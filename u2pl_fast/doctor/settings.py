"""Settings of the doctor: those of the training that select the data, and a few of its own."""

import dataclasses
import shlex
from dataclasses import dataclass
from pathlib import Path

from ..config import DATA_SETTINGS, TrainConfig, find_config, help_texts, resolve, setting


def _as_in_training() -> list[tuple]:
    """Return the fields of the training that select the data; None stands for the training's value."""
    texts = help_texts(TrainConfig)
    fields = {field.name: field for field in dataclasses.fields(TrainConfig)}
    return [
        (name, fields[name].type | None, setting(None, metavar=fields[name].metadata["metavar"], help=texts[name]))
        for name in DATA_SETTINGS
    ]


DataSettings = dataclasses.make_dataclass(
    "DataSettings",
    _as_in_training(),
    kw_only=True,
    namespace={"__doc__": "Same flags as in the training. Unset: the value of --config, or the training's default."},
)


@dataclass(kw_only=True)
class DoctorConfig(DataSettings):
    """Settings of ``u2pl doctor``."""

    config: str | None = setting(None, metavar="FILE")
    """YAML file of a training, or the name of a built-in configuration; flags override it."""
    max_files: int | None = None
    """Check only this many images, spread evenly. Unset: all."""
    json: Path | None = setting(None, metavar="FILE")
    """Write findings, class counts and complete lists of files to this file."""


def settings_of(config: DoctorConfig) -> TrainConfig:
    """Return the settings of the training for these data.

    Raises:
        ValueError: a setting cannot be used; the message names it.
    """
    settings = TrainConfig() if config.config is None else TrainConfig.from_yaml(find_config(config.config))
    for name in DATA_SETTINGS:
        value = getattr(config, name)
        if value is not None:
            setattr(settings, name, value)
    if config.dataset is None and config.config is None:
        raise ValueError("dataset: set --dataset, or --config of the training")
    return resolve(settings)


def doctor_command(config: TrainConfig) -> str:
    """Return the command that checks the data of a training."""
    command = ["u2pl", "doctor"]
    for name in DATA_SETTINGS:
        value = getattr(config, name)
        if value is not None and value != getattr(TrainConfig(), name):
            command += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, tuple) else [value])]
    return shlex.join(command)
