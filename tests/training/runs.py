"""Small trainings, for every test that needs one, and what they must have in common."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from unittest import mock

import torch

from u2pl_fast import data, train
from u2pl_fast.config import TrainConfig
from u2pl_fast.data import Split, measured_masks, shapes
from u2pl_fast.saving import checkpoint

FEW = 4
# Imports are most of what a process costs. They are made once, in the server that all are forked from.
FORKED = torch.multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["u2pl_fast.train"])


@contextmanager
def few_images() -> Iterator[None]:
    """Evaluate on a few of the built-in images. On all of them it takes several times as long as the training."""
    with mock.patch.dict(shapes.SPLIT_SIZES, val=FEW), mock.patch.object(data, "measured_masks", few_masks):
        yield


def few_masks(split: Split) -> list[int]:
    """Return the hidden masks that pseudo-labels are compared with."""
    return measured_masks(split, FEW)


def tiny(out: Path, **options) -> TrainConfig:
    """Settings of a second of training that goes through every phase: labels alone, then the teacher, then the bank."""
    settings = {
        "encoder": "mobilenetv3_small_050",
        "crop_size": (64, 64),
        "batch_size": 2,
        "num_labeled": 6,
        "steps": 8,
        "sup_only_epochs": 3 / 197,
        "eval_every": 1000,
        "log_every": 2,
        "workers": 0,
        "threads": 1,
        "device": "cpu",
    }
    return TrainConfig(out=out, **settings | options)


def run(config: TrainConfig) -> dict:
    """Train in this process, and return the metrics."""
    with few_images():
        return train.run(config)


def start(flags: Sequence[str], output: Path | str = os.devnull, **environment: str) -> BaseProcess:
    """Start ``u2pl_fast.train`` as a process of its own that writes to the end of the file ``output``."""
    process = FORKED.Process(target=_main, args=(list(flags), output, environment))
    process.start()
    return process


def _main(flags: list[str], output: Path | str, environment: dict[str, str]) -> None:
    os.environ |= environment
    with open(output, "a") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    with few_images():
        train.main(flags)


def weights(out: Path) -> dict[str, torch.Tensor]:
    """Return every tensor that a run goes on with."""
    state = checkpoint.load(out / "last.pt")
    flat = {}

    def walk(value, name):
        if isinstance(value, torch.Tensor):
            flat[name] = value
        elif isinstance(value, dict):
            for key, item in value.items():
                walk(item, f"{name}.{key}")
        elif isinstance(value, list | tuple):
            for key, item in enumerate(value):
                walk(item, f"{name}.{key}")

    for part in ("student", "teacher", "bank", "optimizer"):
        walk(state[part], part)
    return flat


def assert_same_state(a: Path, b: Path) -> None:
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys() and len(first) > 100
    differing = [name for name in first if not torch.equal(first[name], second[name])]
    assert not differing, f"{len(differing)} tensors differ, first {differing[0]}"
