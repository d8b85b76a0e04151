"""Run the training loop: batches, logs, evaluation and checkpoints around the learner's steps."""

import math
import time
from collections import deque
from typing import NamedTuple

import torch
from torch import Tensor

from .. import data, ops
from ..config import TrainConfig, resolve_for_data, training_steps
from ..data.class_weights import class_weights
from ..inference import evaluate_model
from ..inference.pseudo_label_quality import pseudo_label_quality
from ..models import check_batch
from ..reference import unreliable_share
from ..utils.distributed import Group, all_sum, all_true, rank, world_size
from .async_scalars import AsyncScalars
from .learner import Learner, Step
from .resume import RunFolder, check_teacher_from, load_initial_weights
from .run_log import RunLog
from .traffic import step_traffic

LOGGED_AT_CHANCE, AT_CHANCE = 10, 0.99  # warn if the mean of 10 logged values of L_c exceeds 0.99 log(N + 1)


class PendingScalars(NamedTuple):
    """Hold scalars of a step that are being copied to the host.

    Attributes:
        step: the step.
        scalars: the copy.
        known: numbers that the host knows already.
    """

    step: int
    scalars: AsyncScalars
    known: dict[str, float]


class Trainer:
    """Train a run: its data, learner, scores and checkpoints. ``fit`` is the loop."""

    def __init__(self, config: TrainConfig, device: torch.device, group: Group) -> None:
        self.device, self.group = device, group
        self.rank, self.world = rank(group), world_size(group)
        self.semi = config.method != "supervised"

        self.split = data.split_dataset(config.build_dataset("train"), config.label_choice)
        dataset = self.split.dataset
        self.val = config.build_dataset("val", classes_from=dataset)
        self.num_classes, self.ignore_index = dataset.num_classes, self.split.ignore_index
        self.steps_per_epoch = self.split.steps_per_epoch(config.unlabeled_images * self.world)
        self.steps = training_steps(config, self.steps_per_epoch)
        self.config = config = resolve_for_data(config, self.steps_per_epoch)
        check_batch(config.arch, config.batch_size)
        if self.semi and config.teacher_from is not None and not config.resume:
            check_teacher_from(config, list(dataset.class_names))

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
            init=None if config.init_from is None else lambda student: load_initial_weights(student, config),
            whole_images=lambda: data.whole_images(dataset, self.split.unlabeled, config.resize),
        )
        self.folder = RunFolder(config.out, group)
        self.best_miou = -1.0
        self.scores: dict = {}
        self.evaluated_at = 0
        self._measured: list[int] | None = None
        self.seconds = self.loader_seconds = 0.0
        self._pending: PendingScalars | None = None
        self.stop_requested = False
        self._contrastive: deque[float] = deque(maxlen=LOGGED_AT_CHANCE)

    @property
    def step(self) -> int:
        """Return the number of steps done."""
        return self.learner.step

    @property
    def epochs(self) -> float:
        """Return T, the length of the run in passes over the unlabeled images."""
        return self.steps / self.steps_per_epoch

    # --- The loop -----------------------------------------------------------------------------------------------------

    def fit(self, log: RunLog) -> None:
        """Train from ``self.step`` to the end, or until the run is asked to stop."""
        config, learner = self.config, self.learner
        stop = self.steps if config.stop_after is None else min(self.steps, config.stop_after)
        options = config.loader_options(learner.student.pad_multiple)
        batches = data.train_loader(self.split, options, self.rank, self.world, self.step, stop)
        learner.student.train()
        if self._evaluation_is_due() and self.evaluated_at != self.step:  # the run stopped during that evaluation
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
                self._log_pending(log)
                self._pending = self._send_scalars(done, waited)
                self.loader_seconds, waited = self.loader_seconds + waited, 0.0
            self._log_pending(log, wait=evaluates or saves)
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

    # --- Logs and evaluation ------------------------------------------------------------------------------------------

    def _send_scalars(self, done: Step, waited: float) -> PendingScalars:
        """Start copying this step's scalars to the host."""
        losses = done.losses
        own = torch.stack((losses.total, losses.supervised, losses.unsupervised, losses.contrastive))
        whole = all_sum(own, self.group) / self.world  # each process has its share of the global loss
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
        return PendingScalars(self.step, AsyncScalars(numbers), known)

    def _log_pending(self, log: RunLog, wait: bool = True) -> None:
        """Log the scalars that were sent last if they have arrived; ``wait`` waits for them."""
        pending = self._pending
        if pending is None or not (wait or pending.scalars.ready):
            return
        self._pending = None
        values = pending.scalars.values()
        if any(values.pop("label_errors")):
            ops.check_label_errors(self.device)
        in_a_row = values.pop("skipped_in_a_row")
        if values["contrastive"] > 0:
            self._contrastive.append(values["contrastive"])
        per_step = (self.config.batch_size + self.semi * self.config.unlabeled_images) * self.world
        log.record(pending.step, pending.known | values, images_per_step=per_step)
        if in_a_row > self.config.max_skipped:
            raise FloatingPointError(f"{in_a_row} updates in a row had a loss or gradient that was not finite")

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
                protocol=self.config.protocol,
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
        self._warn_of_collapse(log)
        if self.scores["miou"] > self.best_miou:
            self.best_miou = self.scores["miou"]
            if self.rank == 0:
                self.folder.save_best(self.state_dict())

    def _warn_of_collapse(self, log: RunLog) -> None:
        """Warn if L_c stays at log(N + 1), its value when all pixels have the same representation."""
        if len(self._contrastive) < LOGGED_AT_CHANCE or self.config.negatives == "full":
            return
        mean, chance = sum(self._contrastive) / len(self._contrastive), math.log(self.config.num_negatives + 1)
        if mean > AT_CHANCE * chance:
            head = "teacher-head" if self.config.projection == "pointwise" else "teacher"
            other = {"student": head, "teacher-head": "teacher"}.get(self.config.key_encoder)
            hint = f"; --key-encoder {other} may help" if other else ""
            log.say(
                f"warning: the contrastive loss is {mean:.2f}, the level of chance, log(N + 1) = {chance:.2f}: "
                f"the representations do not separate the classes{hint}"
            )

    def _pseudo_label_quality(self, log: RunLog) -> dict[str, float]:
        """Compare the teacher with masks of unlabeled images, which training never uses."""
        if self._measured is None:
            self._measured = data.usable_masks(
                self.split.dataset,
                data.measured_masks(self.split),
                lambda error: log.say(f"warning: not used to measure pseudo-labels: {error}"),
            )
        return pseudo_label_quality(
            self.learner.teacher.module,
            data.evaluation_samples(self.split.dataset, self.config.resize, self.rank, self.world, self._measured),
            alpha=unreliable_share(self.config.alpha, self.step // self.steps_per_epoch, self.epochs),
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
        """Return whether the first update at or after a multiple of ``every`` steps was just made.

        Between updates there are gradients that a checkpoint does not hold.
        """
        accumulate = self.config.accumulate
        return self.step % accumulate == 0 and self.step % every < accumulate

    def _agree_to_stop(self) -> bool:
        """Return whether any process was asked to stop."""
        if self.group is None:
            return self.stop_requested
        return not bool(all_true(torch.tensor(not self.stop_requested, device=self.device), self.group))

    # --- State --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict:
        """Return everything that resuming needs; the step number gives random numbers and data position."""
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
        """Write ``last.pt``; see :class:`RunFolder`."""
        bank = self.learner.criterion.bank
        own_ring = self.world > 1 and bank is not None and bank.scope == "local"
        self.folder.save(self.state_dict, self.step, bank.state_dict() if own_ring else None)

    def load(self) -> str | None:
        """Load ``last.pt``, or ``previous.pt`` if that is unreadable; return the reason in that case."""
        state, complaint = self.folder.load(self.learner.student, self.config, self.num_classes, self.world)
        bank = self.learner.criterion.bank
        if bank is not None and self.rank and bank.scope == "local":
            state["bank"] = self.folder.load_ring(state["step"])
        self.folder.drop_rings_after(state["step"])
        self.learner.load_state_dict(state)
        self.best_miou, self.scores = state["best_miou"], state["scores"]
        self.evaluated_at = state.get("evaluated_at", self.step)
        self.seconds, self.loader_seconds = state["seconds"], state["loader_seconds"]
        return complaint

    def traffic(self) -> dict[str, float]:
        """Return the bytes that this process receives in a step, by purpose."""
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
        """Return the contents of ``metrics.json``; ``miou`` is that of the last evaluation."""
        return {
            "miou": self.scores.get("miou"),
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
