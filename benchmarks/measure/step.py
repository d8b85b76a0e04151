"""Build learners for the step benchmark: the methods, the cost of their networks alone, and losses as in public code.

A network with random weights is not confident about any pixel, so its masks would be empty. The logits of the workload,
which resemble those of a trained network, are therefore added to the output of the classifier, for every method.
"""

import torch
from torch import Tensor, nn

from u2pl_fast import ops
from u2pl_fast.config import TrainConfig, resolve
from u2pl_fast.criterion import Losses, PseudoLabels, U2PLCriterion
from u2pl_fast.memory_bank import MemoryBank
from u2pl_fast.outputs import SegmentationOutput, represent
from u2pl_fast.training.learner import Learner

from . import class_loop
from .inputs import Inputs
from .workloads import Workload

STEPS = 1000
ENCODERS = {"camvid": "tf_efficientnet_lite0", "tiny": "resnet10t"}  # all other workloads use the published one
PUBLISHED_ENCODER = "resnet101"


def config(w: Workload, **choices: object) -> TrainConfig:
    return resolve(
        TrainConfig(
            encoder=ENCODERS.get(w.name, PUBLISHED_ENCODER),
            encoder_weights="none",
            crop_size=w.crop,
            steps=STEPS,
            num_labeled=w.labeled,
            batch_size=w.labeled,
            representation_dim=w.dim,
            projection_width=256,
            num_anchors=w.anchors,
            num_negatives=w.negatives,
            bank_capacity=(str(w.capacity), f"0:{w.background_capacity}"),
            amp="bfloat16",
            channels_last=True,
            **choices,
        )
    )


class Painted(nn.Module):
    """Return the logits of a trained network plus those of the classifier."""

    def __init__(self, classifier: nn.Module, logits: Tensor) -> None:
        super().__init__()
        self.classifier = classifier
        self.register_buffer("logits", logits, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Add the logits. The last images of a batch are the unlabeled ones, and a teacher may see only those."""
        return self.classifier(x) + self.logits[-len(x) :]


def learner(x: Inputs, criterion: type[U2PLCriterion] = U2PLCriterion, **choices: object) -> Learner:
    """Return a learner at its 100th step with a full bank; ``criterion`` computes the losses."""

    def paint(student: nn.Module) -> None:
        student.classifier = Painted(student.classifier, x.all_logits)

    w = x.workload
    built = Learner(
        config(w, **choices),
        w.num_classes,
        w.ignore_index,
        steps=STEPS,
        steps_per_epoch=STEPS,
        device=torch.device(x.device),
        criterion=criterion,
        init=paint,
    )
    built.step = 100
    built.student.train()
    bank = built.criterion.bank
    if bank is not None:
        rows, pushed = x.new_bank()
        bank.bank.copy_(rows)
        bank.pushed.copy_(pushed)
    return built


def batch(x: Inputs) -> dict[str, Tensor]:
    """Return a batch as the loader gives it: noise for images, because no cost depends on them, and the labels."""
    w, draw = x.workload, torch.Generator().manual_seed(0)

    def images(count: int) -> Tensor:
        return torch.randint(0, 256, (count, 3, *w.crop), generator=draw, dtype=torch.uint8).to(x.device)

    return {
        "images": images(w.labeled),
        "labels": x.labels,
        "weak": images(w.unlabeled),
        "strong": images(w.unlabeled),
        "valid": x.valid,
        "unlabeled_index": torch.arange(w.unlabeled),
    }


class NetworksOnly(U2PLCriterion):
    """Cost what the networks cost: the same rows through the head, with and without gradient, and a trivial loss.

    The rows are recorded in the first step, a real one, and used again.
    """

    index: Tensor | None = None

    def __init__(self, *arguments: object, **options: object) -> None:
        super().__init__(*arguments, contrastive=self._recorded_loss, **options)

    def pseudo_labels(self, logits: Tensor, valid: Tensor) -> PseudoLabels:
        if self.index is None:
            self.recorded = super().pseudo_labels(logits, valid)
        return self.recorded

    def forward(self, student: SegmentationOutput, *arguments: object, **options: object) -> Losses:
        if self.index is None:
            return super().forward(student, *arguments, **options)
        represent(student)
        rows = ops.gather_pixels(student.features, self.index)
        if student.project is not None:
            rows = student.project(rows.flatten(0, 1))
        loss = rows.float().square().mean()
        zero = torch.zeros_like(loss)
        return Losses(loss, zero, zero, loss.detach(), loss.isfinite(), {})

    def _recorded_loss(
        self,
        logits: Tensor,
        label: Tensor,
        reliable: Tensor,
        unreliable: Tensor,
        features: Tensor,
        keys: Tensor,
        bank: MemoryBank,
        draws: ops.ContrastiveDraws,
        *,
        num_labeled: int,
        **options: object,
    ) -> ops.ContrastiveLoss:
        maps = (logits, label, reliable, unreliable)
        masks = ops.contrast_masks(*maps, num_labeled=num_labeled, ignore_index=self.ignore_index, **self.ranks)
        self.index = ops.class_sample(masks.anchor_label, self.num_classes, draws.anchors)
        return ops.contrastive_loss(*maps, features, keys, bank, draws, num_labeled=num_labeled, **options)


class LabeledTeacher(U2PLCriterion):
    """Pass the labeled images through the teacher too. Only the teacher's representations and probabilities need it."""

    needs_labeled_teacher = True


class Eager(U2PLCriterion):
    """Compute the losses in plain PyTorch, on full-size logits."""

    def pseudo_labels(self, logits: Tensor, valid: Tensor) -> PseudoLabels:
        with ops.use_backend("reference"):
            return super().pseudo_labels(logits, valid)

    def forward(self, *arguments: object, **options: object) -> Losses:
        with ops.use_backend("reference"):
            return super().forward(*arguments, **options)


class ClassLoop(Eager):
    """Compute the losses as public code does: full-size logits, dense representations, then ``class_loop``.

    The criterion still makes the maps on the grid, as for any ``contrastive``; the loop makes its own.
    """

    queues: list[class_loop.Queue] | None = None

    def __init__(self, *arguments: object, **options: object) -> None:
        super().__init__(*arguments, contrastive=self._looped_loss, **options)

    def forward(
        self,
        student: SegmentationOutput,
        labels: Tensor,
        pseudo: PseudoLabels | None = None,
        teacher: SegmentationOutput | None = None,
        **options: object,
    ) -> Losses:
        self.full_size = labels, pseudo  # the loop needs these, `contrastive` is given the grid's maps
        if student.project is not None:
            dense = student.project(student.features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            student = student._replace(features=dense, project=None)
        return super().forward(student, labels, pseudo, teacher, **options)

    def _looped_loss(
        self,
        logits: Tensor,
        label: Tensor,
        reliable: Tensor,
        unreliable: Tensor,
        features: Tensor,
        keys: Tensor,
        bank: MemoryBank,
        draws: ops.ContrastiveDraws,
        **options: object,
    ) -> ops.ContrastiveLoss:
        labels, pseudo = self.full_size
        ring_slots = self.queues is None
        if self.queues is None:
            self.queues = class_loop.queues(bank.bank, bank.offsets.diff().tolist(), bank.pushed)
        arguments = {
            "logits": logits,
            "features": features,
            "labels": labels,
            "pseudo": pseudo.label,
            "entropy": pseudo.entropy,
            "valid": pseudo.valid,
            "max_keys": bank.max_keys,
            "thin_draw": draws.thinning,
            "anchor_draw": draws.anchors,
            "negative_draw": draws.negatives,
            "num_classes": self.num_classes,
            "grid": features.shape[-2:],
            "align_corners": self.align_corners,
            "settings": {"num_labeled": len(labels), "ignore_index": self.ignore_index, **self.ranks},
            "queues": self.queues,
            "ring_slots": ring_slots,
            "to_features": True,
        }
        loss, *_ = class_loop.branch(arguments)
        uncounted = torch.zeros_like(bank.pushed)
        return ops.ContrastiveLoss(loss, uncounted, uncounted, uncounted)
