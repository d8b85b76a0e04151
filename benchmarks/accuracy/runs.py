"""Read and write results of runs in ``benchmarks/results/accuracy``: small, without paths, ready for tables."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from u2pl_fast.config import TrainConfig, read_settings, resolve, upgraded
from u2pl_fast.train import parse
from u2pl_fast.utils.atomic import write_text

from ..measure import machine
from ..measure.results import RESULTS as ALL_RESULTS
from .experiments import Experiment, experiments

RESULTS = ALL_RESULTS / "accuracy"
MACHINE = {"device", "threads", "workers", "channels_last", "amp", "cache", "save_every", "log_every"}
PATHS = {
    *("out", "data_root", "encoder_weights", "resume", "dry_run", "stop_after"),
    *("labeled_list", "teacher_from"),  # determined by the experiment's number of labels and seed
}
BY_DATA = {"sup_only_epochs"}  # unset in an experiment; filled in when the images are known


def settled(out: Path) -> bool:
    """Return whether the run in this folder is finished."""
    try:
        steps = yaml.safe_load((out / "config.yaml").read_text())["steps"]
        return json.loads((out / "metrics.json").read_text())["steps"] == steps
    except OSError:
        return False


def log_lines(out: Path) -> list[dict[str, Any]]:
    """Return what the run in this folder logged, a dict for each line."""
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def record(experiment: Experiment, out: Path) -> dict[str, Any]:
    """Return scores, curves and settings of a finished run."""
    metrics = json.loads((out / "metrics.json").read_text())
    config = yaml.safe_load((out / "config.yaml").read_text())
    log = log_lines(out)
    return {
        "row": experiment.row,
        "dataset": experiment.dataset,
        "labels": experiment.labels,
        "seed": experiment.seed,
        "flags": list(experiment.flags),
        "miou": {"last": metrics["miou"], "best": metrics["best_miou"], "network": metrics["network"]},
        "iou_per_class": metrics["iou_per_class"],
        "evaluations": [
            {k: v for k, v in line.items() if k == "step" or k.startswith(("miou_", "pseudo_"))}
            for line in log
            if any(k.startswith(("miou_", "pseudo_")) for k in line)
        ],
        "steps": metrics["steps"],
        "seconds": metrics["seconds"],
        "skipped": metrics["skipped"],
        "machine": machine.name(config["device"].partition(":")[0].replace("auto", "cpu")),
        "threads": config["threads"],
        "versions": machine.versions(),
        "commit": machine.commit(),
        "time": machine.now(),
        "settings": {k: v for k, v in config.items() if k not in PATHS},
    }


def load(folder: Path) -> dict[str, dict[str, Any]]:
    """Return results by name of experiment."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def current(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the results whose settings match the current meaning of their experiment's flags."""
    described = {experiment.name: experiment for experiment in experiments()}
    return {
        name: run for name, run in load(folder).items() if name in described and fits(run["settings"], described[name])
    }


@cache
def _parsed(flags: tuple[str, ...]) -> TrainConfig:
    """Parse flags once: each table asks for each experiment, and parsing is slow."""
    return parse(list(flags))


def meaning(experiment: Experiment) -> dict[str, Any]:
    """Return the settings of an experiment's flags, except those that the data or the machine determines."""
    settings = read_settings(resolve(_parsed(experiment.flags)).to_dict())
    by_data = {name for name in BY_DATA if settings[name] is None}
    return {k: v for k, v in settings.items() if k not in PATHS | MACHINE | by_data}


def fits(settings: dict[str, Any], experiment: Experiment) -> bool:
    """Return whether a run's settings match the current meaning of its experiment's flags.

    Settings newer than the run count as their defaults.
    """
    saved = TrainConfig().to_dict() | upgraded(settings)
    return all(saved[k] == v for k, v in meaning(experiment).items())


def save(path: Path, result: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(result) + "\n")
