"""Compute the losses L_s, L_u and L_c of U²PL in any training loop.

The criterion takes tensors and returns losses and statistics. It depends on no data set and no network.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import ops, reference
from .gates import GATES, Gated, PseudoLabels, apply_gate
from .memory_bank import MemoryBank
from .outputs import SegmentationOutput, represent
from .utils.cuda_graph import CudaGraph
from .utils.distributed import Group, all_sum, all_true, world_size

SOURCES = ("student", "teacher")
KEY_ENCODERS = ("teacher-head", *SOURCES)


@dataclass
class Losses:
    """Hold the losses of one step, as scalars on the device.

    Attributes:
        total: L_s + λ_u · L_u + λ_c · L_c, with the gradient.
        supervised: L_s.
        unsupervised: λ_u · L_u.
        contrastive: L_c, without λ_c.
        finite: bool; false if an output of a network or a loss is NaN or infinite.
        statistics: tensors by name: ``gamma``, ``lambda_u``, ``reliable_share``, ``anchors``, ``negatives``,
            ``bank_fill`` and ``bank_turnover``, those that this step computes.
        taught: bool (B_u, H, W), the pixels of L_u; None without pseudo-labels.
    """

    total: Tensor
    supervised: Tensor
    unsupervised: Tensor
    contrastive: Tensor
    finite: Tensor
    statistics: dict[str, Tensor]
    taught: Tensor | None = None


class U2PLCriterion(nn.Module):
    """Compute the three losses of U²PL, and keep the memory bank of the third.

        L = L_s + λ_u · L_u + λ_c · L_c

    L_s is the cross-entropy of labeled pixels, L_u that of reliable pseudo-labels, and L_c the contrastive loss, whose
    negatives come from unreliable pixels.

    Args:
        num_classes: C; labels are 0..C-1.
        representation_dim: D. None builds no bank and omits L_c (Mean Teacher, or labels only).
        ignore_index: the label of ignored pixels; must not be a class.
        gate: the rule for reliable pixels of L_u: ``entropy``, ``class-entropy`` or ``confidence``; see
            :func:`u2pl_fast.gates.apply_gate`. With ``confidence``, λ_u is η · #reliable / #valid, so that L_u is a
            mean over all valid pixels, as in FixMatch.
        confidence_threshold: the threshold of the gate ``confidence``.
        alpha_0: α_0, the share of unlabeled pixels that is unreliable at the start of training.
        unsupervised_weight: η.
        unsupervised_weight_cap: the maximum of λ_u; None sets no maximum.
        contrastive_weight: λ_c.
        positive_threshold: δ_p.
        low_rank: r_l; None is min(3, C−1).
        high_rank: r_h; None is min(20, C).
        num_anchors: M, anchors per class.
        num_negatives: N.
        negatives: ``per_anchor`` (Eq. 4), ``shared`` (Algorithm 1) or ``full``.
        temperature: τ.
        key_encoder: the network whose representations are positives and negatives. ``teacher-head`` applies the
            teacher's ``project`` to the student's features and needs no extra forward pass. ``teacher`` takes the
            teacher's own representations, also of labeled images. ``student`` takes the student's, detached, which can
            collapse (docs/accuracy.md).
        labeled_probs: the network whose probabilities select anchors and negatives on labeled images: ``student`` or
            ``teacher``.
        bank_capacity: K, one number or one per class.
        max_keys_per_step: as in :class:`u2pl_fast.MemoryBank`.
        bank_dtype: as ``dtype`` in :class:`u2pl_fast.MemoryBank`.
        bank_scope: as ``scope`` in :class:`u2pl_fast.MemoryBank`.
        class_weight: (C), class weights of L_s, and of L_u with ``weigh_pseudo_labels``.
        weigh_pseudo_labels: apply ``class_weight`` to L_u too; its mean is then Σ w_y ℓ / Σ w_y over reliable pixels.
        label_smoothing: ε of L_s, in [0, 1].
        ohem: (threshold, min_kept): compute L_s on hard pixels only, selected by ``ops.ohem_mask`` in each process.
        auxiliary_weight: the weight of the auxiliary classifier's cross-entropy in L_s.
        align_corners: as in ``torch.nn.functional.interpolate``, for logits to pixels.
        contrastive: a function that replaces ``ops.contrastive_loss`` and takes the same arguments.
        group: the process group of a distributed run. L_s, L_u, γ_t, λ_u and the class centers are then those of the
            global batch.

    Raises:
        ValueError: an argument has a wrong value. The message names it.

    Examples:
        >>> from u2pl_fast import SegmentationOutput, U2PLCriterion
        >>> criterion = U2PLCriterion(num_classes=5, representation_dim=None)
        >>> student = SegmentationOutput(torch.randn(2, 5, 8, 8, requires_grad=True))
        >>> losses = criterion(student, labels=torch.randint(0, 5, (2, 32, 32)))
        >>> losses.total.backward()

    Source: Wang et al., "Semi-Supervised Semantic Segmentation Using Unreliable Pseudo-Labels", CVPR 2022.
    """

    class_weight: Tensor | None

    def __init__(
        self,
        num_classes: int,
        representation_dim: int | None = 256,
        *,
        ignore_index: int = 255,
        gate: str = "entropy",
        confidence_threshold: float = 0.95,
        alpha_0: float = 0.2,
        unsupervised_weight: float = 1.0,
        unsupervised_weight_cap: float | None = None,
        contrastive_weight: float = 0.1,
        positive_threshold: float = 0.3,
        low_rank: int | None = None,
        high_rank: int | None = None,
        num_anchors: int = 256,
        num_negatives: int = 50,
        negatives: str = "per_anchor",
        temperature: float = 0.5,
        key_encoder: str = "teacher-head",
        labeled_probs: str = "student",
        bank_capacity: int | Sequence[int] = 30_000,
        max_keys_per_step: int | Sequence[int] | None = None,
        bank_dtype: torch.dtype = torch.float32,
        bank_scope: str = "local",
        class_weight: Tensor | None = None,
        weigh_pseudo_labels: bool = False,
        label_smoothing: float = 0.0,
        ohem: tuple[float, int] | None = None,
        auxiliary_weight: float = 0.4,
        align_corners: bool = False,
        contrastive: Callable[..., ops.ContrastiveLoss] = ops.contrastive_loss,
        group: Group = None,
    ) -> None:
        super().__init__()
        reference.check_ignore_index(ignore_index, num_classes)
        low_rank = min(3, num_classes - 1) if low_rank is None else low_rank
        high_rank = min(20, num_classes) if high_rank is None else high_rank
        if low_rank >= num_classes:
            raise ValueError(
                f"low_rank: {low_rank} with {num_classes} classes leaves no unlabeled negative; "
                f"use at most {num_classes - 1}, or None for the default"
            )
        if not 0 <= low_rank < high_rank:
            raise ValueError(f"high_rank: expected more than low_rank={low_rank} ≥ 0, got {high_rank}")
        for name, value, allowed in (
            ("gate", gate, GATES),
            ("negatives", negatives, ops.NEGATIVES),
            ("key_encoder", key_encoder, KEY_ENCODERS),
            ("labeled_probs", labeled_probs, SOURCES),
        ):
            if value not in allowed:
                raise ValueError(f"{name}: expected one of {', '.join(allowed)}, got {value!r}")
        self.gate, self.confidence_threshold = gate, confidence_threshold
        self.num_classes, self.ignore_index = num_classes, ignore_index
        self.align_corners, self.group = align_corners, group
        self.alpha_0, self.eta, self.eta_cap = alpha_0, unsupervised_weight, unsupervised_weight_cap
        self.contrastive_weight, self.temperature = contrastive_weight, temperature
        self.ranks = {"low_rank": low_rank, "high_rank": high_rank, "positive_threshold": positive_threshold}
        self.num_anchors, self.num_negatives, self.negatives = num_anchors, num_negatives, negatives
        self.key_encoder, self.labeled_probs = key_encoder, labeled_probs
        if weigh_pseudo_labels and class_weight is None:
            raise ValueError("weigh_pseudo_labels: requires class weights; pass class_weight")
        self.weigh_pseudo_labels = weigh_pseudo_labels
        self.label_smoothing, self.ohem, self.auxiliary_weight = label_smoothing, ohem, auxiliary_weight
        self.register_buffer("class_weight", class_weight, persistent=False)
        self.contrastive = contrastive
        self._graph: CudaGraph | None = None
        self._grid_pixels: dict[tuple, Tensor] = {}
        self.bank = None
        if representation_dim is not None:
            capacities = [bank_capacity] * num_classes if isinstance(bank_capacity, int) else list(bank_capacity)
            if len(capacities) != num_classes:
                raise ValueError(f"bank_capacity: expected {num_classes} numbers, one per class, got {len(capacities)}")
            self.bank = MemoryBank(
                capacities,
                representation_dim,
                dtype=bank_dtype,
                max_keys_per_step=max_keys_per_step,
                scope=bank_scope,
                group=group,
            )

    @property
    def needs_labeled_teacher(self) -> bool:
        """Return whether the teacher must also run on the labeled images."""
        return self.bank is not None and "teacher" in (self.key_encoder, self.labeled_probs)

    def capture_contrastive(self, head: nn.Module | None) -> None:
        """Capture L_c and its gradient as a CUDA graph, and replay it in every step.

        Args:
            head: the module behind the student's ``project``.

        Raises:
            ValueError: the criterion has a process group.
        """
        if self.group is not None:
            raise ValueError("group: a CUDA graph of the contrastive loss supports one process only; use group=None")
        self._graph = CudaGraph(head)

    def pseudo_labels(self, logits: Tensor, valid: Tensor) -> PseudoLabels:
        """Compute pseudo-labels from the teacher's logits.

        Args:
            logits: (B_u, C, h, w), the teacher's, of the unlabeled images.
            valid: bool (B_u, H, W), false on padding.

        Returns:
            Label, entropy and confidence at H×W, with ``valid``.
        """
        stats = ops.pixel_stats(logits, valid.shape[-2:], align_corners=self.align_corners)
        return PseudoLabels(stats.label, stats.entropy, valid, stats.confidence)

    def forward(
        self,
        student: SegmentationOutput,
        labels: Tensor,
        pseudo: PseudoLabels | None = None,
        teacher: SegmentationOutput | None = None,
        *,
        epoch: int = 0,
        epochs: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Losses:
        """Compute the losses of one step.

        Args:
            student: outputs for the labeled images, followed by the unlabeled ones, mixed and strongly augmented.
            labels: (B_l, H, W), any integer dtype.
            pseudo: pseudo-labels of the unlabeled images, mixed like them; None trains on labels only.
            teacher: outputs for the unlabeled images, mixed on the grid, or for all images if
                ``needs_labeled_teacher``; None omits L_c. ``key_encoder`` ``teacher`` reads its features and
                ``project``, ``teacher-head`` its ``project``.
            epoch: t of α_t = α_0 · (1 − t/T).
            epochs: T.
            generator: draws anchors, negatives and thinning, on the device of the logits; required with ``teacher``.

        Returns:
            The losses and statistics of the step.

        Raises:
            ValueError: ``teacher`` is given without ``pseudo``, ``generator``, a bank or the features that L_c reads.
        """
        num_labeled = labels.shape[0]
        zero = student.logits.new_zeros((), dtype=torch.float32)
        statistics: dict[str, Tensor] = {}
        supervised = self._supervised(student, labels)
        unsupervised, contrastive, gated = zero, zero, None
        outputs_finite = _finite(student.logits) & supervised.isfinite()
        if pseudo is not None:
            alpha = reference.unreliable_share(self.alpha_0, epoch, epochs)
            gated = apply_gate(
                self.gate,
                pseudo,
                alpha=alpha,
                threshold=self.confidence_threshold,
                num_classes=self.num_classes,
                group=self.group,
            )
            unsupervised, weight, share = self._unsupervised(student.logits[num_labeled:], pseudo, gated.taught)
            outputs_finite &= unsupervised.isfinite()
            statistics |= {"gamma": gated.gamma, "lambda_u": weight, "reliable_share": share}
        if teacher is not None:
            if pseudo is None or generator is None:
                raise ValueError("teacher: the contrastive loss also requires pseudo and generator; pass both")
            if self.bank is None or student.features is None:
                raise ValueError(
                    "teacher: the contrastive loss requires a memory bank and the student's features; set "
                    "representation_dim, and give features in the student's output"
                )
            read = (teacher.logits, student.features, teacher.features if self.key_encoder == "teacher" else None)
            outputs_finite &= torch.stack([_finite(x) for x in read if x is not None]).all()
        finite = all_true(outputs_finite, self.group)
        if teacher is not None:
            assert pseudo is not None and gated is not None and generator is not None
            contrastive, counts = self._contrastive(student, labels, pseudo, teacher, gated, finite, generator)
            statistics |= counts
        total = supervised + unsupervised + self.contrastive_weight * contrastive
        return Losses(
            total,
            supervised.detach(),
            unsupervised.detach(),
            contrastive.detach(),
            all_true(finite & total.isfinite(), self.group),
            statistics,
            None if gated is None else gated.taught,
        )

    def _supervised(self, student: SegmentationOutput, labels: Tensor) -> Tensor:
        logits = student.logits[: labels.shape[0]]
        if self.ohem is not None:
            threshold, min_kept = self.ohem
            keep = ops.ohem_mask(
                logits.detach(),
                labels,
                threshold=threshold,
                min_kept=min_kept,
                ignore_index=self.ignore_index,
                align_corners=self.align_corners,
            )
            labels = torch.where(keep, labels, self.ignore_index)
        loss = self._mean_cross_entropy(logits, labels)
        if student.aux_logits is not None:
            aux = self._mean_cross_entropy(student.aux_logits[: labels.shape[0]], labels)
            loss = loss + self.auxiliary_weight * aux
        return loss

    def _mean_cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Compute the mean over the labeled pixels of the global batch.

        The result is multiplied by the number of processes, since their gradients are averaged.
        """
        num, den = ops.upsampled_cross_entropy(
            logits,
            labels,
            weight=self.class_weight,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            reduction="parts",
            align_corners=self.align_corners,
        )
        return _ratio(num, all_sum(den, self.group)) * world_size(self.group)

    def _unsupervised(self, logits: Tensor, pseudo: PseudoLabels, reliable: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        label = pseudo.label if self.ignore_index >= 0 else pseudo.label.to(torch.int16)
        target = torch.where(reliable, label, self.ignore_index)
        num, den = ops.upsampled_cross_entropy(
            logits,
            target,
            weight=self.class_weight if self.weigh_pseudo_labels else None,
            ignore_index=self.ignore_index,
            reduction="parts",
            align_corners=self.align_corners,
        )
        counts = all_sum(torch.stack((pseudo.valid.sum(), reliable.sum())), self.group)
        num_valid, num_reliable = counts.unbind()
        weight = reference.unsupervised_weight(self.eta, num_valid, num_reliable, self.eta_cap)
        if self.gate == "confidence":  # a mean over all valid pixels, where pixels below the threshold count as 0
            weight = self.eta * num_reliable / num_valid.clamp(min=1)
        den = all_sum(den, self.group) if self.weigh_pseudo_labels else num_reliable  # the integer count is exact
        loss = weight * _ratio(num, den) * world_size(self.group)
        return loss, weight, num_reliable / num_valid.clamp(min=1)

    def _contrastive(
        self,
        student: SegmentationOutput,
        labels: Tensor,
        pseudo: PseudoLabels,
        teacher: SegmentationOutput,
        gated: Gated,
        finite: Tensor,
        generator: torch.Generator,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        assert self.bank is not None and student.features is not None
        num_labeled, size = labels.shape[0], labels.shape[-2:]
        grid = student.features.shape[-2:]
        label, pseudo_label, reliable, unreliable = (
            self._to_grid(x, grid) for x in (labels, pseudo.label, gated.taught, gated.unreliable)
        )
        unread = torch.zeros_like(label, dtype=torch.bool)
        key = self._key_output(student, teacher)
        if key.features is None:
            raise ValueError("teacher: key_encoder 'teacher' requires its features, got None; give them in its output")
        shared = key.features is student.features  # pass it once: a graph copies each input
        draws = ops.contrastive_draws(
            self.num_classes,
            generator,
            num_anchors=self.num_anchors,
            num_negatives=self.num_negatives,
            negatives=self.negatives,
        )

        def branch(
            gate: Tensor,
            logits: Tensor,
            label: Tensor,
            reliable: Tensor,
            unreliable: Tensor,
            features: Tensor,
            *rest: Tensor,
        ) -> ops.ContrastiveLoss:
            key_features, *drawn = (features, *rest) if shared else rest
            return self.contrastive(
                logits,
                label,
                reliable,
                unreliable,
                features,
                represent(key._replace(features=key_features)),
                self.bank,
                ops.ContrastiveDraws(*drawn),
                num_labeled=num_labeled,
                **self.ranks,
                ignore_index=self.ignore_index,
                negatives=self.negatives,
                temperature=self.temperature,
                project=student.project,
                gate=gate,
                group=self.group,
            )

        inputs = (
            reference.pool_to_stride4(self._probability_logits(student, teacher, num_labeled), size),
            torch.cat((label, pseudo_label.to(label.dtype))),
            torch.cat((unread, reliable)),
            torch.cat((unread, unreliable)),
            student.features,
            *(() if shared else (key.features.detach(),)),
            *(draw for draw in draws if draw is not None),
        )
        if self._graph is None:
            out = branch(finite, *inputs)
        else:
            shut = torch.zeros_like(finite)  # warm-up must not change the bank
            out = ops.ContrastiveLoss(*self._graph(branch, (finite, *inputs), (shut, *inputs)))
        fill = self.bank.fill
        return out.loss, {
            "anchors": out.anchors,
            "negatives": out.negatives,
            "bank_fill": fill,
            "bank_turnover": out.pushed / fill.clamp(min=1),
        }

    def _to_grid(self, x: Tensor, grid: Sequence[int]) -> Tensor:
        """Sample like ``reference.sample_to_grid``, with indices computed once per size.

        Computing them takes many small operations.
        """
        height, width = x.shape[-2:]
        key = (height, width, *grid, x.device)
        if key not in self._grid_pixels:
            numbers = torch.arange(height * width, device=x.device).view(1, height, width)
            self._grid_pixels[key] = reference.sample_to_grid(numbers, grid, align_corners=self.align_corners)
        pixels = self._grid_pixels[key].expand(len(x), *grid)
        return x.flatten(1).gather(1, pixels.flatten(1)).view(pixels.shape)

    def _key_output(self, student: SegmentationOutput, teacher: SegmentationOutput) -> SegmentationOutput:
        """Return the features, and the head for them, that give positives and negatives."""
        if self.key_encoder == "teacher":
            return teacher
        if self.key_encoder == "student":
            return student
        if student.project is None or teacher.project is None:
            raise ValueError(
                "key_encoder: 'teacher-head' applies the teacher's head to the student's features; give project in the "
                "outputs of both, or use key_encoder 'teacher' or 'student'"
            )
        return student._replace(project=teacher.project)

    def _probability_logits(self, student: SegmentationOutput, teacher: SegmentationOutput, num_labeled: int) -> Tensor:
        if self.labeled_probs == "teacher":
            return teacher.logits
        unlabeled = teacher.logits[-(student.logits.shape[0] - num_labeled) :]
        return torch.cat((student.logits[:num_labeled].detach().to(unlabeled.dtype), unlabeled))


def _ratio(num: Tensor, den: Tensor) -> Tensor:
    """Return num / den, or 0 with a gradient of 0 if den is 0."""
    return num / torch.where(den == 0, torch.inf, den)


def _finite(x: Tensor) -> Tensor:
    """Return whether every element is finite: a NaN or an infinity survives the sum.

    Only float16 needs a wider sum. On the CPU, requesting one for other types would copy all of ``x`` first.
    """
    return x.detach().sum(dtype=torch.float32 if x.dtype == torch.float16 else None).isfinite()
