"""``python -m u2pl_fast.doctor --dataset D --data-root DIR``: everything that is wrong with a data set, and the fixes.

Every file is decoded, and nothing is written to the data set. Exit status 0: a training can start; 1: it cannot.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.progress import Progress

from ..config import DATA_SETTINGS, TrainConfig, find_config, resolve
from ..utils.atomic import write_text
from . import checks, report
from .evidence import Evidence, gather
from .findings import Finding


@dataclass
class DoctorConfig:
    """Check a data set as a training would use it: layout, pairs of image and mask, sizes, mask values, classes, and
    images that are both trained on and scored. All problems are told, each with its fix."""

    dataset: str | None = None
    """voc, cityscapes, ade20k, camvid, or folder (images/<split>/*, labels/<split>/*.png)."""
    data_root: Path | None = None
    """Folder of the dataset."""
    labeled_fraction: str | None = None
    """As in the training: share of the training images whose labels are used."""
    num_labeled: int | None = None
    """As in the training: number of training images whose labels are used."""
    labeled_list: Path | None = None
    """As in the training: file that lists the labelled images."""
    unlabeled_list: Path | None = None
    """As in the training: file that lists unlabelled images."""
    label_map: tuple[str, ...] | None = None
    """As in the training: class of each mask value, such as 0:0 255:1."""
    low_rank: int | None = None
    """As in the training."""
    in_channels: int | None = None
    """As in the training: channels of an image."""
    value_range: tuple[float, float] | None = None
    """As in the training: stored values that become 0 and 255."""
    seed: int | None = None
    """As in the training: which images --num-labeled and --labeled-fraction draw."""
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


def run(config: DoctorConfig) -> tuple[Evidence, list[Finding]]:
    """Look at the data and find.

    Raises:
        ValueError: an argument, rather than the data, can't be used.
    """
    if config.max_files is not None and config.max_files < 1:
        raise ValueError(f"max_files: expected at least 1, got {config.max_files}")
    settings = settings_of(config)
    progress = Progress(console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True)
    evidence = gather(settings, config.max_files, progress)
    found = checks.all_findings(evidence)
    if config.json is not None:
        config.json.parent.mkdir(parents=True, exist_ok=True)
        write_text(config.json, json.dumps(report.as_json(evidence, found), indent=2) + "\n")
    return evidence, found


def main(arguments: list[str] | None = None) -> None:
    """Parse flags, look, and tell."""
    config = tyro.cli(DoctorConfig, args=arguments, prog="python -m u2pl_fast.doctor", description=__doc__)
    try:
        evidence, found = run(config)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    report.show(Console(), evidence, found)
    if any(finding.severity == "error" for finding in found):
        sys.exit(1)


if __name__ == "__main__":
    main()
