"""``python -m u2pl_fast.train``: supervised, mean-teacher and U²PL training in one loop.

A step takes as many labelled as unlabelled images. The teacher looks at the weak views, its maps are mixed along with
the strong views, the student sees labelled and mixed images in one forward pass, and the criterion gives the losses.
"""

import dataclasses
import errno
import json
import math
import os
import shlex
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
import tyro
import yaml
from torch import Tensor, nn

from . import data, ops
from .config import DATA_SETTINGS, TrainConfig, find_config, read_settings, resolve
from .data.class_weights import class_weights
from .data.image_format import normalisation
from .inference import evaluate_model
from .inference.pseudo_label_quality import QUALITY_IMAGES, pseudo_label_quality
from .models import check_batch
from .reference import unreliable_share
from .saving import checkpoint
from .training.async_scalars import Readback
from .training.learner import Learner, Step
from .training.run_log import RunLog
from .training.traffic import step_traffic
from .utils.atomic import write_text
from .utils.distributed import Group, all_sum, all_true, rank, session, world_size
from .utils.precision import refusal

LAST, PREVIOUS, BEST = "last.pt", "previous.pt", "best.pt"
LABELS_ALONE = "labels-alone"  # folder of the first of two runs, inside that of the second
FEW_IMAGES = 1000
LOGGED_AT_CHANCE, AT_CHANCE = 10, 0.99  # so many logged values of L_c, so near to log(N + 1), are suspicious
RESUME_ONLY = ("bank", "optimizer", "whole_images")  # the largest part of a checkpoint, which nobody reads in best.pt


class Noted(NamedTuple):
    """A step's numbers on their way to the host, and what the host knew already."""

    step: int
    numbers: Readback
    known: dict[str, float]


class Trainer:
    """Everything that a run holds; ``fit`` is the loop."""

    def __init__(self, config: TrainConfig, device: torch.device, group: Group) -> None:
        self.config, self.device, self.group = config, device, group
        self.rank, self.world = rank(group), world_size(group)
        self.semi = config.method != "supervised"

        self.split = data.training_data(config)
        dataset = self.split.dataset
        self.val = data.build_dataset(
            config.dataset,
            config.data_root,
            "val",
            classes_from=dataset,
            label_map=config.label_map,
            image_format=config.image_format,
        )
        self.num_classes, self.ignore_index = dataset.num_classes, self.split.ignore_index
        self.steps_per_epoch = self.split.steps_per_epoch(config.unlabeled_images * self.world)
        self.steps = config.steps or max(1, round(config.epochs * self.steps_per_epoch))
        if config.sup_only_epochs is None:
            config.sup_only_epochs = 0.0 if self.steps < 4 * self.steps_per_epoch else 1.0
        _check_batch(config)
        if self.semi and config.teacher_from is not None and not config.resume:
            _check_teacher_from(config, dataset)

        self.learner = Learner(
            config,
            self.num_classes,
            self.ignore_index,
            steps=self.steps,
            steps_per_epoch=self.steps_per_epoch,
            teacher_start=round(config.sup_only_epochs * self.steps_per_epoch),
            device=device,
            group=group,
            class_weight=class_weights(config.class_weights, self.split),
            init=None if config.init_from is None else lambda student: _init_from(student, config),
            whole_images=lambda: data.whole_images(dataset, self.split.unlabeled, config.resize),
        )
        self.best_miou = -1.0
        self.scores: dict = {}
        self.evaluated_at = 0
        self._hidden: list[int] | None = None
        self.seconds = self.loader_seconds = 0.0
        self._noted: Noted | None = None
        self.stop_requested = False
        self._contrastive: deque[float] = deque(maxlen=LOGGED_AT_CHANCE)

    @property
    def step(self) -> int:
        """Steps done."""
        return self.learner.step

    @property
    def epochs(self) -> float:
        """T: the length of the run in passes over the unlabelled images."""
        return self.steps / self.steps_per_epoch

    # --- The loop -----------------------------------------------------------------------------------------------------

    def fit(self, log: RunLog) -> None:
        """Train from ``self.step`` to the end, or to where the run is told to stop."""
        config, learner = self.config, self.learner
        stop = self.steps if config.stop_after is None else min(self.steps, config.stop_after)
        multiple = learner.student.pad_multiple
        batches = data.train_loader(self.split, config, self.rank, self.world, self.step, stop, multiple)
        learner.student.train()
        if self._evaluation_is_due() and self.evaluated_at != self.step:  # the run ended in that evaluation
            self._evaluate(log)
            self.save()
        waited = 0.0
        started = waiting_since = time.perf_counter()

        for batch in batches:
            waited += time.perf_counter() - waiting_since
            done = learner.train_step(self._to_device(batch))
            stopping = self._after_update(1 if self.group is None else config.log_every) and self._agree_to_stop()
            at_end = self.step == stop or stopping
            evaluates = self._evaluation_is_due()
            saves = self._after_update(config.save_every) or at_end
            if self.step % config.log_every == 0 or at_end:
                self._tell(log)
                self._noted = self._note(done, waited)
                self.loader_seconds, waited = self.loader_seconds + waited, 0.0
            self._tell(log, wait=evaluates or saves)
            self.seconds += time.perf_counter() - started
            if evaluates:
                self._evaluate(log)
                self._pictures(log, done)
            if saves:
                self.save()
                log.restart_clock(self.step)
            if stopping:
                break
            started = waiting_since = time.perf_counter()

    def _to_device(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        on_host = ("labeled_index", "unlabeled_index", "window")
        return {k: v if k in on_host else v.to(self.device, non_blocking=True) for k, v in batch.items()}

    # --- Telling ------------------------------------------------------------------------------------------------------

    def _note(self, done: Step, waited: float) -> "Noted":
        """Send this step's numbers on their way to the host."""
        losses = done.losses
        own = torch.stack((losses.total, losses.supervised, losses.unsupervised, losses.contrastive))
        whole = all_sum(own, self.group) / self.world  # each process holds its share of the global batch's loss
        numbers = {
            **dict(zip(("loss", "supervised", "unsupervised", "contrastive"), whole, strict=True)),
            "skipped": self.learner.skipped,
            "skipped_in_a_row": self.learner.skipped_in_a_row,
            "label_errors": ops.label_errors(self.device),
        } | losses.statistics
        known = {
            "lr": self.config.lr * done.lr_factor,
            "epoch": self.step / self.steps_per_epoch,
            "loader_wait_seconds": waited,
        }
        return Noted(self.step, Readback(numbers), known)

    def _tell(self, log: RunLog, wait: bool = True) -> None:
        """Log what was noted last, once it has arrived; the host stops for it only where told to ``wait``."""
        noted = self._noted
        if noted is None or not (wait or noted.numbers.ready):
            return
        self._noted = None
        values = noted.numbers.values()
        if any(values.pop("label_errors")):
            ops.check_label_errors(self.device)
        in_a_row = values.pop("skipped_in_a_row")
        if values["contrastive"] > 0:
            self._contrastive.append(values["contrastive"])
        per_step = (self.config.batch_size + self.semi * self.config.unlabeled_images) * self.world
        log.record(noted.step, noted.known | values, images_per_step=per_step)
        if in_a_row > self.config.max_skipped:
            raise FloatingPointError(f"{in_a_row} updates in a row had a loss or gradient that is not finite")

    def _evaluation_is_due(self) -> bool:
        return self.step > 0 and (self.step % self.config.eval_every == 0 or self.step == self.steps)

    def _evaluate(self, log: RunLog) -> None:
        networks = {"student": self.learner.student}
        if self.learner.teacher_began:
            networks["teacher"] = self.learner.teacher.module
        results = {}
        for name, network in networks.items():
            results[name] = evaluate_model(
                network,
                data.evaluation_samples(self.val, self.config.resize, self.rank, self.world),
                num_classes=self.num_classes,
                ignore_index=self.ignore_index,
                device=self.device,
                protocol=self.config.eval_protocol,
                window=self.config.crop_size,
                amp_dtype=self.learner.amp_dtype,
                channels_last=self.config.channels_last,
                group=self.group,
            )
        if self.learner.teacher_began:
            log.note(self.step, self._pseudo_label_quality(log))
        network = list(results)[-1]
        self.scores = {"miou": results[network]["miou"], "iou_per_class": results[network]["iou_per_class"]}
        self.scores |= {"network": network, "confusion": results[network]["confusion"]}
        each = {f"miou_{name}": result["miou"] for name, result in results.items()}
        log.evaluated(self.step, each | {"iou_per_class": self.scores["iou_per_class"]})
        self.evaluated_at = self.step
        self._suspect_collapse(log)
        if self.scores["miou"] > self.best_miou:
            self.best_miou = self.scores["miou"]
            if self.rank == 0:
                networks = {k: v for k, v in self.state_dict().items() if k not in RESUME_ONLY}
                checkpoint.save(self.config.out / BEST, networks)

    def _suspect_collapse(self, log: RunLog) -> None:
        """Say where L_c stays at what equal similarities cost: then all pixels are represented alike."""
        if len(self._contrastive) < LOGGED_AT_CHANCE or self.config.negatives == "full":
            return
        mean, chance = sum(self._contrastive) / len(self._contrastive), math.log(self.config.num_negatives + 1)
        if mean > AT_CHANCE * chance:
            head = "teacher-head" if self.config.projection == "pointwise" else "teacher"
            other = {"student": head, "teacher-head": "teacher"}.get(self.config.key_encoder)
            hint = f"; --key-encoder {other} may prevent it" if other else ""
            log.say(
                f"the contrastive loss, {mean:.2f} in the last logged steps, is at chance, log(N + 1) = {chance:.2f}: "
                f"the representations do not tell classes apart{hint}"
            )

    def _hidden_masks(self, log: RunLog) -> list[int]:
        """Some of the images whose masks training never reads. Nobody promised that these can be used."""
        dataset, labeled = self.split.dataset, set(self.split.labeled)
        hidden = [i for i in self.split.unlabeled if i not in labeled and dataset.has_label(i)]
        usable = []
        for index in data.evenly(hidden, QUALITY_IMAGES):
            try:
                dataset.label(index)
            except data.DataError as error:
                log.say(f"left out where pseudo-labels are measured: {error}")
            else:
                usable.append(index)
        return usable

    def _pseudo_label_quality(self, log: RunLog) -> dict[str, float]:
        """The teacher against the masks of unlabelled images that have one; training never reads them."""
        if self._hidden is None:
            self._hidden = self._hidden_masks(log)
        return pseudo_label_quality(
            self.learner.teacher.module,
            data.evaluation_samples(self.split.dataset, self.config.resize, self.rank, self.world, self._hidden),
            alpha=unreliable_share(self.config.alpha_0, self.step // self.steps_per_epoch, self.epochs),
            low_rank=self.learner.criterion.ranks["low_rank"],
            high_rank=self.learner.criterion.ranks["high_rank"],
            num_classes=self.num_classes,
            ignore_index=self.ignore_index,
            device=self.device,
            amp_dtype=self.learner.amp_dtype,
            group=self.group,
        )

    def _pictures(self, log: RunLog, done: Step) -> None:
        maps = {"labeled/image": done.images[: len(done.labels)], "labeled/label": done.labels}
        pseudo = done.pseudo
        if pseudo is not None:
            maps |= {
                "unlabeled/mixed": done.images[len(done.labels) :],
                "unlabeled/pseudo_label": pseudo.label,
                "unlabeled/entropy": pseudo.entropy,
                "unlabeled/reliable": done.losses.taught,
            }
        log.pictures(self.step, maps, self.num_classes)

    def _after_update(self, every: int) -> bool:
        """Whether the first update at or after a multiple of ``every`` steps was just made.

        Between two updates there are gradients that a checkpoint does not hold.
        """
        accumulate = self.config.accumulate
        return self.step % accumulate == 0 and self.step % every < accumulate

    def _agree_to_stop(self) -> bool:
        """Whether any process was asked to stop."""
        if self.group is None:
            return self.stop_requested
        return not bool(all_true(torch.tensor(not self.stop_requested, device=self.device), self.group))

    # --- State --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict:
        """All that a resumed run needs; the step number is the whole random state and the loader's position."""
        return {
            "config": self.config.to_dict(),
            "num_classes": self.num_classes,
            "class_names": list(self.split.dataset.class_names),
            "network": "teacher" if self.learner.teacher_began else "student",
            **self.learner.state_dict(),
            "best_miou": self.best_miou,
            "scores": self.scores,
            "evaluated_at": self.evaluated_at,
            "seconds": self.seconds,
            "loader_seconds": self.loader_seconds,
            "world_size": self.world,
        }

    def save(self) -> None:
        """Write last.pt; the one that was there becomes previous.pt.

        With a bank per process each further process writes its ring first, in a file of its own.
        """
        bank, last = self.learner.criterion.bank, self.config.out / LAST
        own_ring = self.world > 1 and bank is not None and bank.scope == "local"
        if own_ring and self.rank:
            checkpoint.save(self._ring_path(self.step), {"step": self.step, "bank": bank.state_dict()})
        if self.group is not None:
            dist.barrier(group=self.group)
        if self.rank == 0:
            checkpoint.keep_previous(last, last.with_name(PREVIOUS))
            checkpoint.save(last, self.state_dict())
            for step in sorted(self._rings(), reverse=True)[2:]:
                for ring in self._rings()[step]:
                    ring.unlink(missing_ok=True)

    def _ring_path(self, step: int) -> Path:
        return self.config.out / f"ring{self.rank}.step{step}.pt"

    def _rings(self) -> dict[int, list[Path]]:
        """Ring files by the step that wrote them."""
        found: dict[int, list[Path]] = {}
        for path in self.config.out.glob("ring*.step*.pt"):
            found.setdefault(int(path.stem.rpartition("step")[2]), []).append(path)
        return found

    def load(self) -> str | None:
        """Take up the run where last.pt left it, or previous.pt where that cannot be read; why, if so."""
        last = self.config.out / LAST
        state, path, complaint = checkpoint.load_first(last, last.with_name(PREVIOUS))
        checkpoint.check_layout(state, path)
        if "optimizer" not in state:
            raise ValueError(f"resume: {path} holds networks alone, as best.pt does; start a new run with --init-from")
        checkpoint.check_match(state, self.learner.student, num_classes=self.num_classes, source=path)
        _check_same_run(state, self.config, self.world, path)
        bank = self.learner.criterion.bank
        if bank is not None and self.rank and bank.scope == "local":
            state["bank"] = checkpoint.load(self._ring_path(state["step"]))["bank"]
        for step, rings in self._rings().items():
            if step > state["step"]:  # of a save that was cut short
                for ring in rings:
                    ring.unlink(missing_ok=True)
        self.learner.load_state_dict(state)
        self.best_miou, self.scores = state["best_miou"], state["scores"]
        self.evaluated_at = state.get("evaluated_at", self.step)
        self.seconds, self.loader_seconds = state["seconds"], state["loader_seconds"]
        return complaint

    def traffic(self) -> dict[str, float]:
        """Bytes that this process receives in a step, by purpose."""
        student, bank = self.learner.student, self.learner.criterion.bank
        return step_traffic(
            self.world,
            parameters=sum(p.numel() for p in student.parameters() if p.requires_grad),
            buffers=sum(b.numel() for b in student.buffers() if b.is_floating_point()),
            num_classes=self.num_classes,
            dim=None if bank is None else bank.bank.shape[1],
            shared_keys=0 if bank is None else bank.shared_keys,
            key_bytes=4 if bank is None else bank.bank.element_size(),
            accumulate=self.config.accumulate,
        )

    def metrics(self) -> dict:
        return {
            "miou": self.scores.get("miou"),
            "last_miou": self.scores.get("miou"),
            "best_miou": self.best_miou if self.best_miou >= 0 else None,
            "iou_per_class": self.scores.get("iou_per_class"),
            "network": self.scores.get("network"),
            "confusion": self.scores.get("confusion"),
            "world_size": self.world,
            "steps": self.step,
            "seconds": round(self.seconds, 3),
            "loader_seconds": round(self.loader_seconds, 3),
            "skipped": int(self.learner.skipped),
        }


def _init_from(student: nn.Module, config: TrainConfig) -> None:
    """Start from the evaluated network of another run; heads of another shape keep their fresh weights."""
    path = config.init_from
    state = checkpoint.load(path)
    checkpoint.check_layout(state, path)
    theirs = TrainConfig.from_dict(state["config"])
    if theirs.in_channels == config.in_channels and theirs.normalisation != config.normalisation:
        mean, std = (" ".join(f"{value:g}" for value in values) for values in theirs.normalisation)
        raise ValueError(
            f"init_from: {path} was trained on images normalised otherwise; give its --image-mean {mean} "
            f"--image-std {std}"
        )
    weights = state[state["network"]] or state["student"]
    own = student.state_dict()
    fitting = {k: v for k, v in weights.items() if k in own and own[k].shape == v.shape}
    if not any(name.startswith("encoder.") for name in fitting):
        raise ValueError(f"init_from: {path} holds no encoder that fits {config.arch}/{config.encoder}")
    student.load_state_dict(fitting, strict=False)


def _check_teacher_from(config: TrainConfig, dataset: data.SegmentationDataset) -> None:
    """Refuse an earlier network that labels other classes, or takes other images."""
    state = checkpoint.load(config.teacher_from)
    checkpoint.check_layout(state, config.teacher_from)
    if list(state["class_names"]) != list(dataset.class_names):
        raise ValueError(f"teacher_from: {config.teacher_from} was trained on other classes than this data set has")
    channels = state["config"].get("in_channels", 3)
    if channels != config.in_channels:
        raise ValueError(
            f"teacher_from: {config.teacher_from} takes images of {channels} channels, these have {config.in_channels}"
        )


def _check_batch(config: TrainConfig) -> None:
    check_batch(config.arch, config.batch_size)


# Settings that may differ between a run and its continuation without changing what is computed.
FREE_ON_RESUME = {
    "out", "resume", "stop_after", "workers", "threads", "cache", "save_every", "log_every", "eval_every",
    "data_root", "device", "encoder_weights", "init_from", "teacher_from", "max_skipped", "checkpoint_encoder",
}  # fmt: skip


def _check_same_run(state: dict, config: TrainConfig, world: int, path: Path) -> None:
    # A setting that the run did not know yet had its default's effect.
    saved, now = read_settings(TrainConfig().to_dict() | state["config"]), read_settings(config.to_dict())
    for values in (saved, now):  # None and the numbers it stood for are the same
        mean_and_std = normalisation(values["in_channels"], values["image_mean"], values["image_std"])
        values["image_mean"], values["image_std"] = map(list, mean_and_std)
    changed = sorted(name for name in now if name not in FREE_ON_RESUME and saved[name] != now[name])
    if changed:
        listed = ", ".join(f"{name} was {saved[name]}, now {now[name]}" for name in changed)
        raise ValueError(f"resume: {path} belongs to a run with other settings ({listed}); use them, or another --out")
    if state["world_size"] != world:
        raise ValueError(
            f"resume: {path} was written by {state['world_size']} processes, now there are {world}; "
            "use as many, or start a new run with --init-from"
        )


@contextmanager
def _stopping_on_signals(trainer: Trainer) -> Iterator[None]:
    """The first SIGINT or SIGTERM lets the step end and saves; a second one interrupts at once."""

    def request(number: int, _) -> None:
        if trainer.stop_requested:
            raise KeyboardInterrupt
        trainer.stop_requested = True

    numbers = (signal.SIGINT, signal.SIGTERM)
    try:
        before = {number: signal.signal(number, request) for number in numbers}
    except ValueError:  # not in the main thread: whoever runs us there handles signals
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run(config: TrainConfig) -> dict:
    """Train as ``config`` says. Returns what ``metrics.json`` holds.

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
                    print(f"two runs: on labels alone in {first.out}, then with its labels in {config.out}", flush=True)
                metrics, finished = _train(first, device, group)
                if not finished:
                    return metrics
                if group is not None:
                    dist.barrier(group)  # the first process writes the checkpoint that all read
            if not config.dry_run:
                config = dataclasses.replace(config, teacher_from=first.out / LAST)
        return _train(config, device, group)[0]


def _labels_alone(config: TrainConfig) -> TrainConfig:
    """The run whose network labels the unlabeled images of this one."""
    return dataclasses.replace(
        config, method="supervised", average_weights=True, sup_only_epochs=0.0, out=config.out / LABELS_ALONE
    )


def _claim(config: TrainConfig) -> bool:
    """Create the run's folder unless this is a dry run; whether it holds a run, which must be one to go on with."""
    if config.dry_run:
        return False
    try:
        config.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"out: cannot create {config.out}: {error.strerror}") from error
    there = any((config.out / name).exists() for name in (LAST, PREVIOUS))
    if there and not config.resume:
        raise ValueError(f"out: {config.out} already holds a run; go on with --resume, or choose another --out")
    return there


def _train(config: TrainConfig, device: torch.device, group: Group) -> tuple[dict, bool]:
    """One run of a resolved config: what ``metrics.json`` holds, and whether it came to its end."""
    if config.dry_run:
        trainer = Trainer(config, device, group)
        if trainer.rank == 0:
            _introduce(print, trainer)
        return trainer.metrics(), True
    there = _claim(config)
    trainer = Trainer(config, device, group)
    if config.eval_every is None:
        config.eval_every = max(1, trainer.steps // 5)
    start = None
    if there:
        complaint = trainer.load()
        start = complaint and f"{complaint}; going on from {PREVIOUS}, step {trainer.step}"
    elif config.resume:
        start = f"resume: no run in {config.out} yet; starting at step 0"
    with _telling_what_cannot_be_written(config.out):
        return _fit(trainer, start), trainer.step == trainer.steps


def _fit(trainer: Trainer, start: str | None) -> dict:
    """Train to the end or a signal, with a log and the files that describe the run. Returns its metrics."""
    config = trainer.config
    log = RunLog(config.out, trainer.step, trainer.steps, active=trainer.rank == 0)
    try:
        if trainer.rank == 0:
            write_text(config.out / "config.yaml", yaml.safe_dump(config.to_dict(), sort_keys=False))
            write_text(config.out / "classes.json", json.dumps(list(trainer.split.dataset.class_names)) + "\n")
        _introduce(log.say, trainer)
        if start:
            log.say(start)
        with _stopping_on_signals(trainer):
            trainer.fit(log)
    except data.DataError as error:
        if _saved_alone(trainer):
            raise data.DataError(f"{error}; saved at step {trainer.step}, mend it and go on with --resume") from error
        raise
    except FloatingPointError as error:
        trainer.learner.skipped_in_a_row.zero_()
        state = "last good state" if _saved_alone(trainer) else "last save"
        last = config.out / LAST
        source = f"; the {state} is in {last}, for --init-from" if last.exists() else ""
        raise FloatingPointError(
            f"{error}{source}. Start a new run with a lower --lr, --clip-norm 1 or --amp-dtype bfloat16"
        ) from error
    finally:
        log.close()
    metrics = trainer.metrics()
    if trainer.rank == 0:
        write_text(config.out / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    if trainer.step < trainer.steps:
        reached = f"step {trainer.step} of {trainer.steps}"
        log.say(f"stopped and saved at {reached}; go on with the same command and --resume")
    return metrics


def _saved_alone(trainer: Trainer) -> bool:
    """Save, unless other processes would have to meet this one for it, or gradients would be lost; whether it was."""
    possible = trainer.group is None and trainer.step % trainer.config.accumulate == 0 and trainer.step > 0
    if possible:
        trainer.save()
    return possible


@contextmanager
def _telling_what_cannot_be_written(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        there = isinstance(error.filename, str | os.PathLike) and Path(error.filename).is_relative_to(out)
        if not there and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):  # of a write, they name no file
            raise
        raise ValueError(
            f"out: cannot write in {out}: {error.strerror}; what was there is untouched. "
            "Make room there, or choose a folder that can be written; --resume goes on"
        ) from error


def _introduce(say: Callable[[str], None], trainer: Trainer) -> None:
    """What is about to be trained, before the first step."""
    config, learner = trainer.config, trainer.learner
    bank = learner.criterion.bank
    method = f"u2pl ({config.recipe})" if config.method == "u2pl" else config.method
    say(f"{method} on {config.dataset}: {trainer.split.describe()}")
    for note in trainer.split.dataset.notes:
        say(note)
    if config.dataset == "folder" and trainer.semi and config.teacher_input == "crop":
        number = len(trainer.split.labeled) + len(trainer.split.unlabeled)
        if number < FEW_IMAGES:
            say(f"{number} images are few: --config folder-small holds what gained most on photographs")

    millions = sum(p.numel() for p in learner.student.parameters()) / 1e6
    network = [f"{config.arch}/{config.encoder}", f"{trainer.num_classes} classes", f"{millions:.1f} M parameters"]
    network += [str(trainer.device)] + [config.amp_dtype] * (learner.amp_dtype is not None)
    say(", ".join(network + ["channels_last"] * config.channels_last))
    say(f"ops: {_backends(trainer.device)}")
    if config.amp and learner.amp_dtype is None:
        say(refusal(getattr(torch, config.amp_dtype)))

    labeled, unlabeled = config.batch_size * trainer.world, config.unlabeled_images * trainer.world
    say(f"{trainer.steps} steps = {trainer.steps / trainer.steps_per_epoch:.1f} epochs of {trainer.steps_per_epoch}")
    if trainer.semi:
        say(f"global batch {labeled} labelled + {unlabeled} unlabelled; teacher from step {learner.teacher_start}")
        if config.unlabeled_images % 2 and config.mix in ("cutmix", "classmix"):
            odd = "the one image" if config.unlabeled_images == 1 else "one image"
            say(f"--mix {config.mix} takes images of a process in pairs: {odd} of each step is not mixed")
    else:
        say(f"global batch {labeled} labelled")
    if bank is not None:
        say(f"memory bank: {bank.extra_repr()}")
    if trainer.world > 1 and trainer.device.type == "cpu":
        say("batch norm statistics are each process's own: synchronised batch norm needs GPUs")
    if trainer.world > 1:
        parts = ", ".join(f"{name} {_bytes(size)}" for name, size in trainer.traffic().items() if size)
        say(f"each process receives a step: {parts}")
    if trainer.step:
        say(f"resumed at step {trainer.step}")


def _backends(device: torch.device) -> str:
    """What the ops run with: the backend of most, then the others with the names of their ops."""
    chosen = ops.info(device)
    (most, _), *others = Counter(chosen.values()).most_common()
    named = [f"{name} for {', '.join(op for op in chosen if chosen[op] == name)}" for name, _ in others]
    return "; ".join([most, *named])


def _bytes(size: float) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def main(arguments: list[str] | None = None) -> None:
    """Parse flags over an optional YAML file, train, and turn bad input into one line."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        config = parse(arguments)
        metrics = run(config)
    except data.DataError as error:
        sys.exit(f"error: {error}{_doctor_hint(config, error)}")
    except (ValueError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    if int(os.environ.get("RANK", 0)) == 0 and metrics["miou"] is not None:
        seconds = metrics["seconds"]
        share = metrics["loader_seconds"] / max(seconds, 1e-9)
        print(f"mIoU {metrics['miou']:.4f} ({metrics['network']}, best {metrics['best_miou']:.4f}), "
              f"{seconds:.0f} s of training, {share:.1%} of it waiting for images, in {config.out}")  # fmt: skip


def _doctor_hint(config: TrainConfig, error: data.DataError) -> str:
    """The command that tells all that is wrong with these data, where there are data to look at."""
    if error.kind == "process" or config.data_root is None or not config.data_root.is_dir():
        return ""
    command = ["python", "-m", "u2pl_fast.doctor"]
    for name in DATA_SETTINGS:
        value = getattr(config, name)
        if value is not None and value != getattr(TrainConfig(), name):
            command += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, tuple) else [value])]
    return f"\nto see everything that is wrong with the data at once: {shlex.join(command)}"


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
