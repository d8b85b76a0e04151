"""Run a training from start to end: its folder, its files, signals, and errors that say what was saved."""

import dataclasses
import errno
import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
import yaml

from .. import data
from ..config import TrainConfig, resolve
from ..saving.file_names import PREVIOUS
from ..utils.atomic import write_text
from ..utils.distributed import Group, rank, session
from .resume import RunFolder
from .run_log import RunLog
from .summary import summarize
from .trainer import Trainer

LABELS_ALONE = "labels-alone"  # folder of the first of two runs, inside that of the second


def run(config: TrainConfig) -> dict:
    """Train as ``config`` says. Return what ``metrics.json`` holds.

    Raises:
        ValueError: a setting, file or folder cannot be used; the message names it.
        FloatingPointError: too many steps in a row were not finite.
    """
    config = resolve(config)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    with session(config.device) as (device, group):
        if config.labels_first and config.teacher_from is None and config.method != "supervised":
            first = _labels_alone(config)
            if not _claim(config):  # the second run holds the labels once it has begun
                if rank(group) == 0:
                    print(
                        f"two runs: on labels alone in {first.out}, then with the labels it predicts in {config.out}",
                        flush=True,
                    )
                metrics, finished = _train(first, device, group)
                if not finished:
                    return metrics
                if group is not None:
                    dist.barrier(group)  # the first process writes the checkpoint that all read
            if not config.dry_run:
                config = dataclasses.replace(config, teacher_from=RunFolder(first.out, group).last)
        return _train(config, device, group)[0]


def _labels_alone(config: TrainConfig) -> TrainConfig:
    """Return the config of the first run, whose network labels the unlabeled images of the second."""
    return dataclasses.replace(
        config, method="supervised", average_weights=True, sup_only_epochs=0.0, out=config.out / LABELS_ALONE
    )


def _claim(config: TrainConfig) -> bool:
    """Create the run's folder, except in a dry run. Return whether it holds a run to resume.

    Raises:
        ValueError: it holds a run, and the config does not resume it.
    """
    if config.dry_run:
        return False
    folder = RunFolder(config.out, None)
    folder.create()
    if folder.holds_run() and not config.resume:
        raise ValueError(f"out: {config.out} already holds a run; continue it with --resume, or choose another --out")
    return folder.holds_run()


def _train(config: TrainConfig, device: torch.device, group: Group) -> tuple[dict, bool]:
    """Train with a resolved config. Return what ``metrics.json`` holds, and whether the run is complete."""
    if config.dry_run:
        trainer = Trainer(config, device, group)
        if trainer.rank == 0:
            summarize(print, trainer)
        return trainer.metrics(), True
    there = _claim(config)
    trainer = Trainer(config, device, group)
    start = None
    if there:
        complaint = trainer.load()
        start = complaint and f"{complaint}; continuing from {PREVIOUS}, step {trainer.step}"
    elif config.resume:
        start = f"resume: no run in {config.out} yet; starting at step 0"
    with _write_errors_name_the_folder(config.out):
        return _fit(trainer, start), trainer.step == trainer.steps


def _fit(trainer: Trainer, start: str | None) -> dict:
    """Train to the end or a signal, and write the log and the files that describe the run. Return its metrics."""
    config = trainer.config
    log = RunLog(config.out, trainer.step, trainer.steps, active=trainer.rank == 0)
    try:
        if trainer.rank == 0:
            write_text(config.out / "config.yaml", yaml.safe_dump(config.to_dict(), sort_keys=False))
            write_text(config.out / "classes.json", json.dumps(list(trainer.split.dataset.class_names)) + "\n")
        summarize(log.say, trainer)
        if start:
            log.say(start)
        with _stopping_on_signals(trainer):
            trainer.fit(log)
    except data.DataError as error:
        if _saved_alone(trainer):
            raise data.DataError(
                f"{error}; saved at step {trainer.step}; fix the file and continue with --resume"
            ) from error
        raise
    except FloatingPointError as error:
        trainer.learner.skipped_in_a_row.zero_()
        state = "last good state" if _saved_alone(trainer) else "last save"
        last = trainer.folder.last
        source = f"; the {state} is in {last}, for --init-from" if last.exists() else ""
        raise FloatingPointError(
            f"{error}{source}. Start a new run with a lower --lr, --clip-norm 1 or --amp bfloat16"
        ) from error
    finally:
        log.close()
    metrics = trainer.metrics()
    if trainer.rank == 0:
        write_text(config.out / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    if trainer.step < trainer.steps:
        reached = f"step {trainer.step} of {trainer.steps}"
        log.say(f"stopped and saved at {reached}; continue with the same command and --resume")
    return metrics


def _saved_alone(trainer: Trainer) -> bool:
    """Save if this process can do so alone and between two updates. Return whether it did."""
    possible = trainer.group is None and trainer.step % trainer.config.accumulate == 0 and trainer.step > 0
    if possible:
        trainer.save()
    return possible


@contextmanager
def _write_errors_name_the_folder(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        there = isinstance(error.filename, str | os.PathLike) and Path(error.filename).is_relative_to(out)
        if not there and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):  # of a write, they name no file
            raise
        raise ValueError(
            f"out: cannot write in {out}: {error.strerror}; earlier files are intact. "
            "Free some space or choose a writable folder; --resume continues"
        ) from error


@contextmanager
def _stopping_on_signals(trainer: Trainer) -> Iterator[None]:
    """Finish the step and save at the first SIGINT or SIGTERM; interrupt at once at the second."""

    def request(number: int, _) -> None:
        if trainer.stop_requested:
            raise KeyboardInterrupt
        trainer.stop_requested = True

    numbers = (signal.SIGINT, signal.SIGTERM)
    try:
        before = {number: signal.signal(number, request) for number in numbers}
    except ValueError:  # not in the main thread, where the caller handles signals
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
