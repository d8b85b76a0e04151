"""Summarize a run in a few lines before its first step."""

from collections import Counter
from collections.abc import Callable

import torch

from .. import ops
from ..utils.precision import amp_ignored
from .trainer import Trainer

FEW_IMAGES = 1000


def summarize(say: Callable[[str], None], trainer: Trainer) -> None:
    """Print what is trained, on which data, with which ops, and what processes send each other."""
    config, learner = trainer.config, trainer.learner
    bank = learner.criterion.bank
    method = f"u2pl ({config.recipe})" if config.method == "u2pl" else config.method
    say(f"{method} on {config.dataset}: {trainer.split.describe()}")
    for note in trainer.split.dataset.notes:
        say(note)
    if config.dataset == "folder" and trainer.semi and config.teacher_input == "crop":
        number = len(trainer.split.labeled) + len(trainer.split.unlabeled)
        if number < FEW_IMAGES:
            say(f"only {number} images: --config folder-small suits small data sets of photographs")

    millions = sum(p.numel() for p in learner.student.parameters()) / 1e6
    network = [f"{config.arch}/{config.encoder}", f"{trainer.num_classes} classes", f"{millions:.1f} M parameters"]
    network += [str(trainer.device)] + [config.amp] * (learner.amp_dtype is not None)
    say(", ".join(network + ["channels_last"] * config.channels_last))
    say(f"ops: {backends(trainer.device)}")
    if config.amp != "off" and learner.amp_dtype is None:
        say(amp_ignored(config.amp))

    labeled, unlabeled = config.batch_size * trainer.world, config.unlabeled_images * trainer.world
    say(f"{trainer.steps} steps = {trainer.steps / trainer.steps_per_epoch:.1f} epochs of {trainer.steps_per_epoch}")
    if trainer.semi:
        say(f"global batch {labeled} labeled + {unlabeled} unlabeled; teacher from step {learner.teacher_start}")
        if config.unlabeled_images % 2 and config.mix in ("cutmix", "classmix"):
            odd = "the only image" if config.unlabeled_images == 1 else "one image"
            say(f"--mix {config.mix} mixes pairs of images of a process: {odd} of each step is not mixed")
    else:
        say(f"global batch {labeled} labeled")
    if bank is not None:
        say(f"memory bank: {bank.extra_repr()}")
    if trainer.world > 1 and trainer.device.type == "cpu":
        say("batch norm uses separate statistics in each process: synchronized batch norm needs GPUs")
    if trainer.world > 1:
        parts = ", ".join(f"{name} {_bytes(size)}" for name, size in trainer.traffic().items() if size)
        say(f"each process receives per step: {parts}")
    if trainer.step:
        say(f"resumed at step {trainer.step}")


def backends(device: torch.device) -> str:
    """Return the backend of most ops, then the other backends with their ops."""
    chosen = ops.info(device)
    (most, _), *others = Counter(chosen.values()).most_common()
    named = [f"{name} for {', '.join(op for op in chosen if chosen[op] == name)}" for name, _ in others]
    return "; ".join([most, *named])


def _bytes(size: float) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"
