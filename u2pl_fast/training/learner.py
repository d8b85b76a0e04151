"""Run one training step: teacher, mixing, student, losses, update.

This module knows nothing of files, loaders and logs.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.profiler import record_function

from .. import mixing
from ..config import TrainConfig, class_capacities
from ..criterion import Losses, U2PLCriterion
from ..gates import PseudoLabels
from ..inference import load_model
from ..models import build_model, compile_network
from ..outputs import SegmentationOutput, concatenated
from ..reference import sample_to_grid
from ..teacher import EMATeacher
from ..utils.distributed import Group, all_true, broadcast_buffers, rank, world_size
from ..utils.precision import autocast_dtype
from ..utils.randomness import generator, stream
from .optim import BufferGuard, build_optimizer, gated_step, gradient_norm, set_learning_rate
from .whole_images import WholeImagePredictions

Autocast = Callable[[], torch.autocast]
PHASES = ("teacher", "student", "losses", "backward", "update")  # profiler names of the parts of a step


class StudentLoss(nn.Module):
    """Run the student and compute the loss in one forward, as data-parallel wrapping needs it."""

    def __init__(self, student: nn.Module, criterion: U2PLCriterion, autocast: Autocast) -> None:
        super().__init__()
        self.student = student
        self._autocast = autocast
        self._criterion = [criterion]  # hidden from nn.Module: each process has its own bank

    def forward(
        self, images: Tensor, labels: Tensor, pseudo: PseudoLabels | None, teacher, perturbed: int, **options
    ) -> Losses:
        with record_function("student"), self._autocast():
            output = self.student(images, representations=teacher is not None, perturbed=perturbed)
        if output.project is not None:
            output = output._replace(project=self._autocast()(output.project))
        with record_function("losses"):
            losses = self._criterion[0](output, labels, pseudo, teacher, **options)
        if teacher is None and self.student.projection is not None:
            idle = sum(p.sum() for p in self.student.projection.parameters())
            losses.total = losses.total + 0 * idle
        return losses


@dataclass
class Step:
    """Hold what one step used.

    Attributes:
        losses: its losses.
        images: images of the student, labeled ones first.
        labels: labels of the labeled images.
        pseudo: mixed pseudo-labels; None before the teacher starts.
        lr_factor: factor of the learning rate.
    """

    losses: Losses
    images: Tensor
    labels: Tensor
    pseudo: PseudoLabels | None
    lr_factor: float


class Learner:
    """Train the student, teacher and bank of a resolved config, one ``train_step`` at a time.

    Args:
        config: resolved settings.
        num_classes: C.
        ignore_index: label of pixels to ignore.
        steps: length of the run, for the learning rate.
        steps_per_epoch: steps per pass over the unlabeled images, for α_t.
        teacher_start: first step with a teacher; steps before it use labels alone.
        device: where to train.
        group: processes that train together; None = this one.
        class_weight: (C,) weights of the cross-entropies.
        criterion: class that computes the losses.
        init: called with the new student before the teacher copies it.
        whole_images: returns (index, uint8 (N, h, w)) of every unlabeled image; required if ``teacher_input`` is whole.
    """

    def __init__(
        self,
        config: TrainConfig,
        num_classes: int,
        ignore_index: int,
        *,
        steps: int,
        steps_per_epoch: int,
        teacher_start: int = 0,
        device: torch.device,
        group: Group = None,
        class_weight: Tensor | None = None,
        criterion: type[U2PLCriterion] = U2PLCriterion,
        init: Callable[[nn.Module], None] | None = None,
        whole_images: Callable[[], Iterable[tuple[int, Tensor]]] | None = None,
    ) -> None:
        self.config, self.num_classes, self.device, self.group = config, num_classes, device, group
        self.steps, self.steps_per_epoch, self.teacher_start = steps, steps_per_epoch, teacher_start
        self.rank = rank(group)
        self.amp_dtype = autocast_dtype(config.amp, device)

        torch.manual_seed(stream(config.seed, "weights"))
        self.student = build_model(config, num_classes).to(device)
        if config.channels_last:
            self.student = self.student.to(memory_format=torch.channels_last)
        if world_size(group) > 1 and device.type == "cuda" and config.sync_batchnorm:
            self.student = convert_sync_batchnorm(self.student)  # torch's version drops timm's fused activations
        if init is not None:
            init(self.student)
        self.semi = config.method != "supervised"
        averages = self.semi or config.average_weights
        self.teacher = EMATeacher(self.student, config.ema_momentum) if averages else None
        self.whole = self._grid = None
        if self.semi and config.teacher_input == "whole":
            if whole_images is None:
                raise ValueError("whole_images: required with teacher_input whole")
            self.whole, self._whole_images = WholeImagePredictions(config.teacher_scales), whole_images
        self.criterion = build_criterion(config, num_classes, ignore_index, group, class_weight, criterion).to(device)
        self.optimizer = build_optimizer(self.student, config)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.amp_dtype == torch.float16)
        self._loss: nn.Module = StudentLoss(self.student, self.criterion, self._autocast)
        if group is not None:
            self._loss = nn.parallel.DistributedDataParallel(self._loss, broadcast_buffers=False)
        if config.compile:
            compile_network(self.student)
            if self.teacher is not None:
                compile_network(self.teacher.module)
        if config.cuda_graph and self.criterion.bank is not None:
            if device.type != "cuda" or group is not None:
                raise ValueError("cuda_graph: needs a single process on a GPU; remove --cuda-graph")
            self.criterion.capture_contrastive(self.student.projection if config.projection == "pointwise" else None)
        self._parameters = list(self.student.parameters())
        self._buffers = BufferGuard(self.student)
        self._window_ok = torch.ones((), dtype=torch.bool, device=device)

        self.step = 0
        self.skipped = torch.zeros((), dtype=torch.int64, device=device)
        self.skipped_in_a_row = torch.zeros((), dtype=torch.int64, device=device)

    @property
    def teacher_began(self) -> bool:
        """Return whether the teacher follows the student; before, it is an untrained copy."""
        return self.teacher is not None and self.step > self.teacher_start

    def train_step(self, batch: dict[str, Tensor]) -> Step:
        """Train on one batch of the training loader, which must be on the device.

        Nothing here waits for the device, except predictions for whole images.
        """
        config, step = self.config, self.step
        torch.manual_seed(stream(config.seed, "forward", step, self.rank))
        lr_factor = set_learning_rate(self.optimizer, step, self.steps, config.poly_power)
        last_of_window = (step + 1) % config.accumulate == 0 or step + 1 == self.steps
        if step % config.accumulate == 0:
            self._buffers.save()
            self._window_ok.fill_(True)
        if self.teacher is not None and step == self.teacher_start:
            self.teacher.restart(self.student)

        images, labels = self._mix_labeled(batch)
        pseudo, teacher, draws = None, None, None
        if self.semi and step >= self.teacher_start:
            with record_function("teacher"):
                strong, pseudo, teacher = self._pseudo_label(batch | {"images": images})
            images = torch.cat((images, strong))
            if self.criterion.bank is None:
                teacher = None
            draws = generator(config.seed, "draws", step, self.rank, device=self.device)
        if config.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)

        with nullcontext() if last_of_window or self.group is None else self._loss.no_sync():
            losses = self._loss(
                images,
                labels,
                pseudo,
                teacher,
                perturbed=len(batch["weak"]) if pseudo is not None and config.feature_dropout else 0,
                epoch=step // self.steps_per_epoch,
                epochs=self.steps / self.steps_per_epoch,
                generator=draws,
            )
            with record_function("backward"):
                self.scaler.scale(losses.total / config.accumulate).backward()
        self._window_ok &= losses.finite
        self.step = step + 1
        if last_of_window:
            with record_function("update"):
                self._update(self._window_ok)
        return Step(losses, images, labels, pseudo, lr_factor)

    def _pseudo_label(self, batch: dict[str, Tensor]) -> tuple[Tensor, PseudoLabels, SegmentationOutput]:
        """Run the teacher on the weak views; mix strong views, label maps and outputs with one mask."""
        config, weak, labeled = self.config, batch["weak"], batch["images"]
        if not self.criterion.needs_labeled_teacher:
            labeled = labeled[:0]
        again = config.second_teacher_pass
        num_labeled = 0 if again else len(labeled)
        if self.whole is not None:
            output = self._predicted_crop(batch)
        else:
            output = self._run_teacher(weak if again else torch.cat((labeled, weak)), represent=not again)
        of_labeled, output = _split(output, num_labeled)
        pseudo = self.criterion.pseudo_labels(output.logits, batch["valid"])
        views = [
            self._mixed(view, strong, pseudo, output, int(batch["unlabeled_index"][0]))
            for view, strong in enumerate(batch["strong"].chunk(config.strong_views))
        ]
        if config.feature_dropout:
            views.append((weak, pseudo, output))
        images, maps, outputs = zip(*views, strict=True)
        strong, pseudo, output = concatenated(images), PseudoLabels.joined(maps), _joined((of_labeled, *outputs))
        if again:
            output = self._run_teacher(torch.cat((labeled, strong)))
            seen = self.criterion.pseudo_labels(output.logits[len(labeled) :], pseudo.valid)
            pseudo = pseudo._replace(entropy=seen.entropy)
        return strong, pseudo, output

    def _mixed(
        self, view: int, strong: Tensor, pseudo: PseudoLabels, output: SegmentationOutput, first: int
    ) -> tuple[Tensor, PseudoLabels, SegmentationOutput]:
        """Return a strong view of the unlabeled images and the teacher's maps and outputs, mixed with one mask."""
        config = self.config
        mask = self._regions(pseudo, first, view)
        if config.mix == "cutout":
            return strong, pseudo._replace(valid=pseudo.valid & ~mask), output
        if config.mix == "none":
            return strong, pseudo, output
        partner = mixing.partner_index(first, len(strong), device=mask.device)

        def mix(x: Tensor) -> Tensor:
            return mixing.mix(x, partner, mask)

        def mix_on_grid(x: Tensor | None) -> Tensor | None:
            if x is None:
                return None
            return mixing.mix(x, partner, sample_to_grid(mask, x.shape[-2:], align_corners=config.align_corners))

        output = output._replace(logits=mix_on_grid(output.logits), features=mix_on_grid(output.features))
        return mix(strong), pseudo.changed(mix), output

    def _predicted_crop(self, batch: dict[str, Tensor]) -> SegmentationOutput:
        """Return the weak views' crops of the teacher's latest predictions for whole images."""
        earlier, since = self.config.teacher_from, self.step - self.teacher_start
        if not self.whole.maps or (earlier is None and since % self.config.teacher_every == 0):
            network = self.teacher.module if earlier is None else load_model(earlier, self.device)[0]
            self.whole.predict(network, self._whole_images(), self.device, self.amp_dtype)
        weak = batch["weak"]
        if self._grid is None:
            self._grid = self._run_teacher(weak[:1], represent=False).logits.shape[-2:]
        logits = self.whole.crop(batch["window"], weak.shape[-2:], self._grid, self.config.align_corners)
        return self._with_head(SegmentationOutput(logits))

    def _mix_labeled(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return labeled images and labels, with boxes swapped between partners."""
        images, labels, config = batch["images"], batch["labels"], self.config
        if config.mix_labeled_prob == 0:
            return images, labels
        first = int(batch["labeled_index"][0])
        mask = mixing.region_masks(
            "cutmix",
            labels,
            seed=stream(config.seed, "labeled"),
            step=self.step,
            first_index=first,
            mix_prob=config.mix_labeled_prob,
            num_classes=self.num_classes,
        )
        partner = mixing.partner_index(first, len(images), device=mask.device)
        return mixing.mix(images, partner, mask), mixing.mix(labels, partner, mask)

    @torch.no_grad()
    def _run_teacher(self, images: Tensor, represent: bool = True) -> SegmentationOutput:
        """Return the teacher's outputs, with representations if the criterion uses them."""
        if self.config.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        dense = represent and self.criterion.bank is not None and self.config.key_encoder == "teacher"
        with self._autocast():
            output = self.teacher.module(images, representations=dense)
        return self._with_head(output)

    def _with_head(self, output: SegmentationOutput) -> SegmentationOutput:
        """Return the output with the teacher's head as ``project`` if the criterion applies it to the student."""
        if self.criterion.bank is not None and self.config.key_encoder == "teacher-head":
            output = output._replace(project=self.teacher.module.projection)
        if output.project is not None:
            output = output._replace(project=self._autocast()(output.project))
        return output

    def _regions(self, pseudo: PseudoLabels, first: int, view: int) -> Tensor | None:
        config = self.config
        if config.mix == "none":
            return None
        return mixing.region_masks(
            config.mix,
            pseudo.label,
            seed=stream(config.seed, "view", view) if view else config.seed,
            step=self.step,
            first_index=first,
            mix_prob=config.mix_prob,
            num_classes=self.num_classes,
        )

    def _update(self, ok: Tensor) -> None:
        """Update student and teacher if loss and gradient are finite; otherwise change nothing."""
        self.scaler.unscale_(self.optimizer)
        norm = gradient_norm(self._parameters)
        ok = all_true(ok & norm.isfinite(), self.group)
        if self.config.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self._parameters, self.config.clip_norm, norm)
        gated_step(self.optimizer, ok)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self._buffers.restore_unless(ok)
        broadcast_buffers(self.student, self.group)
        if self.teacher_began:
            self.teacher.update(self.student, gate=ok)
        self.skipped += ~ok
        self.skipped_in_a_row = torch.where(ok, 0, self.skipped_in_a_row + 1)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None)

    def state_dict(self) -> dict:
        """Return all learner state that resuming needs; random numbers depend on the step number alone."""
        teacher = self.teacher.state_dict() if self.teacher_began else None
        return {
            "student": self.student.state_dict(),
            "teacher": None if teacher is None else teacher["module"],
            "teacher_updates": 0 if teacher is None else teacher["updates"],
            "step": self.step,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "bank": None if self.criterion.bank is None else self.criterion.bank.state_dict(),
            "whole_images": None if self.whole is None else self.whole.maps,
            "skipped": int(self.skipped),
            "skipped_in_a_row": int(self.skipped_in_a_row),
        }

    def load_state_dict(self, state: dict) -> None:
        self.student.load_state_dict(state["student"])
        if state["teacher"] is not None and self.teacher is not None:
            self.teacher.load_state_dict({"module": state["teacher"], "updates": state["teacher_updates"]})
        if self.criterion.bank is not None:
            self.criterion.bank.load_state_dict(state["bank"])
        if self.whole is not None:
            self.whole.maps = {index: x.to(self.device) for index, x in state["whole_images"].items()}
        self.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:  # empty without float16
            self.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]
        self.skipped.fill_(state["skipped"])
        self.skipped_in_a_row.fill_(state["skipped_in_a_row"])


def _split(output: SegmentationOutput, number: int) -> tuple[SegmentationOutput, SegmentationOutput]:
    """Split outputs into those of the first ``number`` images and those of the rest."""
    first, rest = ({"logits": output.logits[part]} for part in (slice(number), slice(number, None)))
    if output.features is not None:
        first["features"], rest["features"] = output.features[:number], output.features[number:]
    return output._replace(**first), output._replace(**rest)


def _joined(outputs: Sequence[SegmentationOutput]) -> SegmentationOutput:
    """Concatenate the outputs of several batches."""
    features = None if outputs[0].features is None else concatenated([output.features for output in outputs])
    return outputs[0]._replace(logits=concatenated([output.logits for output in outputs]), features=features)


def build_criterion(
    config: TrainConfig,
    num_classes: int,
    ignore_index: int,
    group: Group = None,
    class_weight: Tensor | None = None,
    kind: type[U2PLCriterion] = U2PLCriterion,
) -> U2PLCriterion:
    """Build the criterion of a resolved config, of class ``kind``; only the method u2pl has a bank."""
    return kind(
        num_classes,
        config.representation_dim if config.method == "u2pl" else None,
        ignore_index=ignore_index,
        gate=config.gate,
        confidence_threshold=config.confidence_threshold,
        alpha_0=config.alpha,
        unsupervised_weight=config.unsupervised_weight,
        unsupervised_weight_cap=config.unsupervised_weight_cap,
        contrastive_weight=config.contrastive_weight,
        positive_threshold=config.positive_threshold,
        low_rank=config.low_rank,
        high_rank=config.high_rank,
        num_anchors=config.num_anchors,
        num_negatives=config.num_negatives,
        negatives=config.negatives,
        temperature=config.temperature,
        key_encoder=config.key_encoder,
        labeled_probs=config.labeled_probs,
        bank_capacity=class_capacities(config.bank_capacity, num_classes),
        max_keys_per_step=config.max_keys_per_step,
        bank_dtype=getattr(torch, config.bank_dtype),
        bank_scope=config.bank_scope,
        class_weight=class_weight,
        weigh_pseudo_labels=config.weigh_pseudo_labels,
        label_smoothing=config.label_smoothing,
        ohem=config.ohem,
        align_corners=config.align_corners,
        group=group,
    )
