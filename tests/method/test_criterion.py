"""Test the criterion against plain formulas, and where a formula would divide by zero."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.profiler import profile

from tests.method.cases import CLASSES, DIM, GRID, SIZE, batch, criterion, losses
from u2pl_fast import ops, reference
from u2pl_fast.criterion import PseudoLabels, U2PLCriterion
from u2pl_fast.ops import _backend, draw32
from u2pl_fast.outputs import SegmentationOutput, represent
from u2pl_fast.utils.randomness import generator


def test_losses_match_the_formulas():
    student, labels, pseudo, teacher = parts = batch()
    got = losses(criterion(), parts)

    up = F.interpolate(student.logits, SIZE, mode="bilinear", align_corners=False)
    supervised = F.cross_entropy(up[:2], labels.long(), ignore_index=255)
    gamma = np.quantile(pseudo.entropy[pseudo.valid].numpy(), 1 - 0.2 * (1 - 1 / 10))
    reliable = pseudo.valid & (pseudo.entropy < float(gamma))
    nll = F.cross_entropy(up[2:], pseudo.label.long(), reduction="none")[reliable]
    weight = pseudo.valid.sum() / reliable.sum()
    torch.testing.assert_close(got.supervised, supervised.detach())
    torch.testing.assert_close(got.unsupervised, (weight * nll.mean()).detach())
    torch.testing.assert_close(got.statistics["gamma"], torch.tensor(gamma, dtype=torch.float32))
    torch.testing.assert_close(got.statistics["lambda_u"], weight)
    torch.testing.assert_close(got.total, got.supervised + got.unsupervised + 0.1 * got.contrastive)
    assert got.finite


def test_custom_contrastive_loss_gets_the_arguments_of_the_op():
    given = []

    def contrastive(*arguments, **options):
        given.append(options)
        loss, *counts = ops.contrastive_loss(*arguments, **options)
        return ops.ContrastiveLoss(3 * loss, *counts)

    own, other = (losses(crit, batch()) for crit in (criterion(), criterion(contrastive=contrastive)))
    torch.testing.assert_close(other.contrastive, 3 * own.contrastive)
    torch.testing.assert_close(other.total - own.total, 0.1 * 2 * own.contrastive)
    assert own.contrastive > 0 and other.statistics["anchors"].equal(own.statistics["anchors"])
    assert given[0]["num_labeled"] == 2 and given[0]["gate"]


@pytest.mark.parametrize(("dense", "key_encoder"), [(False, "student"), (False, "teacher-head"), (True, "student")])
def test_contrastive_loss_matches_a_loop_over_classes(dense, key_encoder):
    """Compare with Python loops over classes, from the maps to the loss."""
    crit = criterion(max_keys_per_step=0, bank_capacity=2000, key_encoder=key_encoder)
    student, labels, pseudo, teacher = batch(dense=dense)
    if key_encoder == "teacher-head":
        teacher = teacher._replace(project=torch.nn.Linear(6, DIM))
    got = losses(crit, (student, labels, pseudo, teacher))

    gen = generator(0, "d")
    draw32((CLASSES,), gen)  # thinning, which has no effect with cap 0
    anchor_draws, negative_draws = draw32((CLASSES, 7), gen), draw32((CLASSES, 7, 9), gen)
    logits = torch.cat((student.logits[:2].detach(), teacher.logits))
    p = logits.softmax(1)
    gamma = got.statistics["gamma"]
    by_key_encoder = student if key_encoder == "student" else student._replace(project=teacher.project)
    z, keys_z = (
        (x.permute(0, 2, 3, 1).flatten(0, 2) if dense else x).double()
        for x in (represent(student), represent(by_key_encoder))
    )
    anchors, negatives = [[] for _ in range(CLASSES)], [[] for _ in range(CLASSES)]
    for b in range(4):
        for i in range(GRID[0]):
            for j in range(GRID[1]):
                pixel = (b * GRID[0] + i) * GRID[1] + j
                full = (min(SIZE[0] - 1, int((i + 0.5) * 4)), min(SIZE[1] - 1, int((j + 0.5) * 4)))
                order = sorted(range(CLASSES), key=lambda c: (-logits[b, c, i, j].item(), c))
                for c in range(CLASSES):
                    sure = p[b, c, i, j] > 0.3
                    if b < 2:
                        y = int(labels[b][full])
                        is_anchor, is_negative = y == c and sure, y not in (c, 255) and order.index(c) < 3
                    else:
                        valid, entropy = pseudo.valid[b - 2][full], pseudo.entropy[b - 2][full]
                        is_anchor = int(pseudo.label[b - 2][full]) == c and valid and entropy < gamma and sure
                        is_negative = valid and entropy > gamma and 3 <= order.index(c) < 5
                    if is_anchor:
                        anchors[c].append(pixel)
                    if is_negative:
                        negatives[c].append(pixel)
    per_class = []
    for c in range(CLASSES):
        if not anchors[c] or not negatives[c]:
            continue
        positive = F.normalize(keys_z[anchors[c]].mean(0), dim=0)
        for m in range(7):
            anchor = F.normalize(z[anchors[c][int(anchor_draws[c, m]) * len(anchors[c]) >> 32]], dim=0)
            drawn = [negatives[c][int(d) * len(negatives[c]) >> 32] for d in negative_draws[c, m]]
            keys = F.normalize(keys_z[drawn], dim=1)
            e = [math.exp(float(anchor @ positive) / 0.5), *(math.exp(float(anchor @ k) / 0.5) for k in keys)]
            per_class.append(-math.log(e[0] / sum(e)))
    assert got.statistics["anchors"].tolist() == [len(a) for a in anchors]
    assert got.statistics["negatives"].tolist() == [len(n) for n in negatives]
    assert got.contrastive.item() == pytest.approx(sum(per_class) / len(per_class), rel=1e-5)


def test_the_confidence_gate_averages_over_all_pixels():
    student, labels, pseudo, teacher = batch()
    got = criterion(gate="confidence", confidence_threshold=0.6)(student, labels, pseudo)
    up = F.interpolate(student.logits, SIZE, mode="bilinear", align_corners=False)
    sure = pseudo.valid & (F.interpolate(teacher.logits, SIZE, mode="bilinear").softmax(1).amax(1) >= 0.6)
    nll = F.cross_entropy(up[2:], pseudo.label.long(), reduction="none")
    assert 0 < sure.sum() < pseudo.valid.sum()
    torch.testing.assert_close(got.unsupervised, (nll[sure].sum() / pseudo.valid.sum()).detach())
    with pytest.raises(ValueError, match="gate: expected one of entropy, class-entropy, confidence, got 'sure'"):
        criterion(gate="sure")


def test_gradient_reaches_only_anchors_of_the_student():
    crit, parts = criterion(), batch(dense=True)
    student = parts[0]
    got = losses(crit, parts)
    got.total.backward()
    touched = student.features.grad.abs().sum(1).flatten() > 0
    masks = got.statistics["anchors"]
    assert 0 < touched.sum() <= masks.sum()


def test_nothing_reliable_gives_zero_with_zero_gradient():
    student, labels, pseudo, _ = batch()
    flat = PseudoLabels(pseudo.label, torch.zeros_like(pseudo.entropy), pseudo.valid)  # equal entropies are neither
    got = criterion()(student, labels, flat)
    assert got.unsupervised == 0 and got.finite
    got.total.backward()
    assert student.logits.grad[2:].abs().sum() == 0 and student.logits.grad[:2].abs().sum() > 0


def test_no_valid_pixel_and_no_label_at_all():
    student, labels, pseudo, teacher = batch()
    nothing = PseudoLabels(pseudo.label, pseudo.entropy, torch.zeros_like(pseudo.valid))
    got = losses(criterion(), (student, torch.full_like(labels, 255), nothing, teacher))
    assert got.total == 0 and got.finite
    got.total.backward()
    assert student.logits.grad.abs().sum() == 0 and student.features.grad.abs().sum() == 0


def test_output_that_is_not_finite_keeps_the_bank():
    crit, (student, labels, pseudo, teacher) = criterion(), batch()
    broken = teacher._replace(logits=teacher.logits.index_fill(0, torch.tensor([0]), math.nan))
    got = losses(crit, (student, labels, pseudo, broken))
    assert not got.finite and not crit.bank.pushed.any()


def test_teacher_as_key_encoder_and_for_labeled_probabilities():
    student, labels, pseudo, _ = batch(dense=True)
    torch.manual_seed(9)
    teacher = SegmentationOutput(2 * torch.randn(4, CLASSES, *GRID), torch.randn(4, DIM, *GRID))
    crit = criterion(key_encoder="teacher", labeled_probs="teacher", max_keys_per_step=0, bank_capacity=2000)
    assert crit.needs_labeled_teacher and not criterion().needs_labeled_teacher
    losses(crit, (student, labels, pseudo, teacher))
    stored = crit.bank.bank[: crit.bank.fill[0]]
    rows = F.normalize(reference.pixel_rows(teacher.features), dim=1)
    assert len(stored) and (torch.cdist(stored, rows).min(1).values < 1e-3).all()


def test_teacher_head_is_required_and_not_trained():
    crit, (student, labels, pseudo, teacher) = criterion(key_encoder="teacher-head"), batch()
    head = torch.nn.Linear(6, DIM)
    assert not crit.needs_labeled_teacher
    losses(crit, (student, labels, pseudo, teacher._replace(project=head))).total.backward()
    assert head.weight.grad is None and student.project.weight.grad.any()
    for broken in (
        (student, labels, pseudo, teacher),
        (student._replace(project=None), labels, pseudo, teacher._replace(project=head)),
    ):
        with pytest.raises(ValueError, match="key_encoder: .*'teacher-head'.*give project"):
            losses(crit, broken)


@pytest.mark.parametrize("negatives", ["per_anchor", "shared", "full"])
def test_every_mode_of_negatives_trains(negatives):
    crit, parts = criterion(negatives=negatives), batch()
    got = losses(crit, parts)
    got.total.backward()
    assert got.contrastive > 0 and parts[0].features.grad.abs().sum() > 0


def test_cap_on_lambda_u_and_ohem_and_auxiliary():
    student, labels, pseudo, _ = batch()
    assert criterion(unsupervised_weight_cap=1.1)(student, labels, pseudo).statistics["lambda_u"] == pytest.approx(1.1)
    plain = criterion()(student, labels).supervised
    assert criterion(ohem=(0.0, 50))(student, labels).supervised > plain  # the 50 hardest pixels only
    aux = student._replace(aux_logits=student.logits[:2].detach())
    torch.testing.assert_close(criterion(auxiliary_weight=0.5)(aux, labels).supervised, 1.5 * plain)


def test_class_weights_apply_to_labels_and_optionally_to_pseudo_labels():
    student, labels, pseudo, _ = batch()
    weight = torch.tensor([1.0, 0.5, 2.0, 0.0, 3.0])
    plain, labels_alone = criterion()(student, labels, pseudo), criterion(class_weight=weight)(student, labels, pseudo)
    both = criterion(class_weight=weight, weigh_pseudo_labels=True)(student, labels, pseudo)
    up = F.interpolate(student.logits, SIZE, mode="bilinear", align_corners=False)
    supervised = F.cross_entropy(up[:2], labels.long(), weight, ignore_index=255)
    reliable = pseudo.valid & (pseudo.entropy < plain.statistics["gamma"])
    target = torch.where(reliable, pseudo.label.long(), 255)
    unsupervised = plain.statistics["lambda_u"] * F.cross_entropy(up[2:], target, weight, ignore_index=255)
    assert both.supervised == labels_alone.supervised and plain.unsupervised == labels_alone.unsupervised
    torch.testing.assert_close(both.supervised, supervised.detach())
    torch.testing.assert_close(both.unsupervised, unsupervised.detach())
    assert (both.unsupervised - plain.unsupervised).abs() > 0.01
    (gradient,) = torch.autograd.grad(both.total, student.logits)
    (expected,) = torch.autograd.grad(supervised + unsupervised, student.logits)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weigh_pseudo_labels": True}, "weigh_pseudo_labels: .*pass class_weight"),
        ({"ignore_index": 3}, "ignore_index: 3 is a class"),
        ({"low_rank": 5}, "low_rank: 5 with 5 classes.*use at most 4"),
        ({"low_rank": 3, "high_rank": 3}, "high_rank"),
        ({"negatives": "some"}, "negatives"),
        ({"key_encoder": "both"}, "key_encoder"),
        ({"bank_capacity": [3, 3]}, "bank_capacity"),
    ],
)
def test_error_names_the_setting(options, message):
    with pytest.raises(ValueError, match=message):
        criterion(**options)


def test_default_ranks_fit_few_classes():
    assert U2PLCriterion(2, DIM).ranks == {"low_rank": 1, "high_rank": 2, "positive_threshold": 0.3}
    assert U2PLCriterion(150, DIM).ranks == {"low_rank": 3, "high_rank": 20, "positive_threshold": 0.3}


@pytest.mark.parametrize("key_encoder", ["student", "teacher-head", "teacher"])
def test_channels_last_half_precision_is_read_in_place(key_encoder):
    """Check that the losses never copy features or logits into another layout or dtype."""
    if _backend.extension() is None:
        pytest.skip("the reference copies")
    images, grid, width = 4, (72, 64), 64

    def output(count: int, **options) -> SegmentationOutput:
        logits, features = (
            torch.randn(count, channels, *grid)
            .bfloat16()
            .contiguous(memory_format=torch.channels_last)
            .requires_grad_(options.get("learns", False))
            for channels in (CLASSES, width)
        )
        return SegmentationOutput(logits, features, head)

    head = torch.nn.Linear(width, DIM, dtype=torch.bfloat16)
    crit = criterion(key_encoder=key_encoder, labeled_probs="teacher" if key_encoder == "teacher" else "student")
    student, teacher = output(images, learns=True), output(images if key_encoder == "teacher" else images // 2)
    labels = torch.randint(0, CLASSES, (images // 2, 4 * grid[0], 4 * grid[1]), dtype=torch.uint8)
    pseudo = crit.pseudo_labels(teacher.logits[-images // 2 :], torch.ones_like(labels, dtype=torch.bool))
    with profile(record_shapes=True) as profiled:
        losses(crit, (student, labels, pseudo, teacher)).total.backward()
    # Logits are the smallest tensors that count. Maps at image size are not copied either.
    smallest = images // 2 * CLASSES * grid[0] * grid[1]
    moved = [
        (event.name, event.input_shapes[0])
        for event in profiled.events()
        if event.name in ("aten::clone", "aten::contiguous", "aten::_to_copy")
        and len(event.input_shapes[0]) == 4
        and math.prod(event.input_shapes[0]) >= smallest
    ]
    assert not moved


@pytest.mark.parametrize("align_corners", [False, True])
def test_grid_sampling_matches_reference(align_corners):
    criterion = U2PLCriterion(5, None, align_corners=align_corners)
    for size, grid in (((13, 9), (4, 3)), ((9, 13), (4, 3)), ((13, 9), (1, 5)), ((13, 9), (4, 3)), ((2, 2), (2, 2))):
        x = torch.randint(0, 99, (3, *size), dtype=torch.uint8)
        for maps in (x, x > 50, x.transpose(1, 2).contiguous().transpose(1, 2), x[:0]):
            expected = reference.sample_to_grid(maps, grid, align_corners=align_corners)
            assert torch.equal(criterion._to_grid(maps, grid), expected)
