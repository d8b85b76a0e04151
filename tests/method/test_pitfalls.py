"""Test against known mistakes of public U2PL implementations, at least one test for each."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from tests import oracle
from u2pl_fast import criterion as criterion_module
from u2pl_fast import reference
from u2pl_fast.criterion import Losses, U2PLCriterion
from u2pl_fast.data import MEAN_COLOR, Shapes, ViewOptions, evaluation_samples
from u2pl_fast.data.views import Views
from u2pl_fast.inference.metrics import ConfusionMatrix
from u2pl_fast.memory_bank import MemoryBank
from u2pl_fast.outputs import SegmentationOutput
from u2pl_fast.teacher import EMATeacher
from u2pl_fast.utils.randomness import generator

LARGEST_DRAW = (1 << 32) - 1


def peaked_logits(label: torch.Tensor, classes: int, runners_up: list[list[int]] | None = None) -> torch.Tensor:
    """Return logits (B, C, h, w) with the pixel's own class first (p > 0.9), then ``runners_up[y]`` in order."""
    table = torch.zeros(classes, classes)
    for y in range(classes):
        for place, c in enumerate((runners_up or [[]] * classes)[y]):
            table[y, c] = 2.0 - 0.1 * place
        table[y, y] = 4.0 + math.log(classes)
    return table[label].movedim(-1, 1).contiguous()


def full_size(x: torch.Tensor) -> torch.Tensor:
    """Enlarge maps on the grid to stride 4, each value to a block of 4 x 4."""
    return x.repeat_interleave(4, 1).repeat_interleave(4, 2)


def step(
    criterion: U2PLCriterion,
    logits: torch.Tensor,
    features: torch.Tensor,
    labels: torch.Tensor,
    *,
    valid: torch.Tensor | None = None,
) -> Losses:
    """Run one step of a network of stride 4 whose teacher gives the same logits; maps are given on the grid.

    The first len(labels) images are labeled.
    """
    unlabeled = logits[len(labels) :].detach()
    valid = torch.ones(unlabeled[:, 0].shape, dtype=torch.bool) if valid is None else valid
    pseudo = criterion.pseudo_labels(unlabeled, full_size(valid))
    return criterion(
        SegmentationOutput(logits, features),
        full_size(labels),
        pseudo,
        SegmentationOutput(unlabeled),
        generator=generator(0, "draws"),
    )


# --- labels of a batch scattered into its first image ---


def test_every_labeled_image_gives_anchors_and_gradient():
    label = torch.stack([torch.full((2, 3), y) for y in (2, 0, 1)])
    got = reference.contrast_masks(
        peaked_logits(label, 3),
        label,
        torch.zeros(3, 2, 3, dtype=torch.bool),
        torch.zeros(3, 2, 3, dtype=torch.bool),
        num_labeled=3,
        low_rank=2,
        high_rank=3,
        positive_threshold=0.3,
    )
    assert torch.equal(got.anchor_label.long(), label.flatten())  # image by image, each with its own class
    assert got.anchors.tolist() == [6, 6, 6]
    logits = torch.zeros(3, 3, 2, 3, requires_grad=True)
    reference.upsampled_cross_entropy(logits, label).backward()
    for image, y in enumerate((2, 0, 1)):
        assert (logits.grad[image].argmin(0) == y).all()  # each image raises its own class


# --- labeled negatives restricted to pixels of class c ---


def test_labeled_negatives_are_pixels_of_other_classes():
    # Pixels of classes 0 and 1, each with the other as second most likely; r_l = 2.
    label = torch.tensor([[[0, 0, 1, 255]]])
    logits = peaked_logits(label % 3, 3, [[1], [0], []])
    nowhere = torch.zeros(1, 1, 4, dtype=torch.bool)
    got = reference.contrast_masks(
        logits, label, nowhere, nowhere, num_labeled=1, low_rank=2, high_rank=3, positive_threshold=0.3
    )
    assert reference.unpack_mask(got.mask, 3).tolist() == [
        [False, True, False],
        [False, True, False],
        [True, False, False],
        [False, False, False],
    ]
    assert got.keys.tolist() == [1, 2, 0]


# --- lists indexed by position among the present classes, banks by class id ---


def test_seven_of_twenty_one_classes_all_train():
    classes, present = 21, [2, 5, 8, 11, 14, 17, 20]
    label = torch.tensor(present)[torch.arange(2 * 4 * 7).view(2, 4, 7) % 7]
    following = {y: present[(i + 1) % 7] for i, y in enumerate(present)}
    logits = peaked_logits(label, classes, [[following.get(y, 0)] for y in range(classes)]).requires_grad_()
    features = torch.eye(classes)[label].movedim(-1, 1).contiguous().requires_grad_()  # the vector of class c is e_c
    criterion = U2PLCriterion(
        classes,
        classes,
        num_anchors=32,
        bank_capacity=64,
        low_rank=2,
        high_rank=3,
        max_keys_per_step=0,
        key_encoder="student",
    )
    losses = step(criterion, logits, features, label[:1])
    in_batch = torch.tensor([c in present for c in range(classes)])
    assert torch.equal(losses.statistics["anchors"] > 0, in_batch)
    # The second likeliest of a labeled pixel of class y is following[y], so that ring holds e_y, and e_y alone; the
    # unlabeled pixels' third likeliest is always class 0.
    for y in present:
        ring = criterion.bank.bank[criterion.bank.offsets[following[y]] :][: criterion.bank.fill[following[y]]]
        assert len(ring) > 0
        assert torch.equal(ring, torch.eye(classes)[y].expand_as(ring))
    losses.total.backward()
    moved = features.grad.movedim(1, -1)
    for y in present:
        assert moved[label == y].abs().sum() > 0, f"class {y} does not train"


def test_samples_and_prototypes_are_stored_by_class_id():
    label = torch.tensor([5, 5, 2, -1], dtype=torch.int16)
    index = reference.class_sample(label, 7, torch.full((7, 1), LARGEST_DRAW))
    assert index.flatten().tolist() == [-1, -1, 2, -1, -1, 1, -1]
    assert reference.class_sum(torch.tensor([[1.0], [2.0], [4.0], [8.0]]), label, 7).flatten().tolist() == [
        *(0, 0, 4, 0, 0, 3, 0)
    ]


# --- the contrastive gradient divided by the world size twice ---


def random_step(seed: int = 0, **options) -> tuple[Losses, torch.Tensor, torch.Tensor, U2PLCriterion]:
    """Return (losses after backward, d total / d logits, d total / d features, criterion) for random tensors."""
    rng = torch.Generator().manual_seed(seed)
    logits = (3 * torch.randn(4, 5, 6, 6, generator=rng)).requires_grad_()
    features = torch.randn(4, 8, 6, 6, generator=rng).requires_grad_()
    labels = torch.randint(0, 5, (2, 6, 6), generator=rng)
    options = {"num_anchors": 16, "num_negatives": 8, "bank_capacity": 40, "key_encoder": "student"} | options
    criterion = U2PLCriterion(5, 8, **options)
    losses = step(criterion, logits, features, labels)
    losses.total.backward()
    return losses, logits.grad, features.grad, criterion


def test_each_gradient_is_divided_by_the_world_size_once(monkeypatch):
    """Check that two processes with the same batch average their gradients, as DDP does, to that of one process."""
    alone, logits_alone, features_alone, _ = random_step()
    monkeypatch.setattr(criterion_module, "world_size", lambda group: 2)
    monkeypatch.setattr(criterion_module, "all_sum", lambda x, group: 2 * x.detach())
    together, logits_grad, features_grad, _ = random_step()
    assert alone.contrastive > 0
    for name in ("supervised", "unsupervised", "contrastive", "total"):
        torch.testing.assert_close(getattr(together, name), getattr(alone, name))
    torch.testing.assert_close(logits_grad, logits_alone)
    torch.testing.assert_close(features_grad, features_alone)


# --- the teacher ---


class Student(nn.Module):
    """Combine a convolution and batch norm: parameters, float buffers and an integer buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def train_a_little(self) -> None:
        self.train()(torch.randn(4, 3, 5, 5) * 3 + 1)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.add_(torch.randn_like(parameter))


def storages(module: nn.Module) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in module.state_dict().values()}


def snapshot(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def test_teacher_never_shares_storage_with_the_student():
    student = Student()
    teacher = EMATeacher(student)
    for follow in (lambda: None, lambda: teacher.restart(student), lambda: teacher.update(student)):
        follow()
        assert not storages(teacher.module) & storages(student)
        before = snapshot(teacher.module)
        student.train_a_little()
        assert all(torch.equal(before[name], tensor) for name, tensor in teacher.module.state_dict().items())


def test_teacher_starts_as_a_copy_and_does_not_train():
    student = Student()
    teacher = EMATeacher(student)
    student.train_a_little()
    teacher.restart(student)
    assert all(torch.equal(snapshot(student)[n], tensor) for n, tensor in teacher.module.state_dict().items())
    assert not teacher.module.training and student.training
    assert not any(parameter.requires_grad for parameter in teacher.module.parameters())
    assert all(parameter.requires_grad for parameter in student.parameters())


def test_teacher_averages_batch_norm_buffers_and_copies_counters():
    student = Student()
    teacher = EMATeacher(student, momentum=0.6)
    for updates in range(5):
        before = snapshot(teacher.module)
        student.train_a_little()
        teacher.update(student)
        momentum = oracle.ema_momentum(updates, 0.6)
        for name, new in student.state_dict().items():
            got = teacher.module.state_dict()[name]
            if new.is_floating_point():
                expected = oracle.ema(before[name].numpy(), new.numpy(), momentum)
                assert oracle.relative_error(got, expected) < 1e-6, name
            else:
                assert torch.equal(got, new), name
    assert teacher.module.net[1].num_batches_tracked == 5
    assert (teacher.module.net[1].running_mean != student.net[1].running_mean).all()


def test_step_that_is_not_finite_keeps_the_teacher_but_counts():
    student = Student()
    teacher = EMATeacher(student)
    before = snapshot(teacher.module)
    with torch.no_grad():
        student.net[0].weight.fill_(math.nan)
        student.net[1].running_var.fill_(math.inf)
        student.net[1].num_batches_tracked += 1
    teacher.update(student, gate=torch.tensor(False))
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.module.state_dict().items())
    assert teacher.updates == 1


# --- crops padded with label 0 ---


def test_small_images_are_padded_with_the_ignore_index_and_are_not_valid_there():
    # A gray 10x14 image of class 0 alone, in a crop of 16x16 that is padded to 32x32.
    views = Views(ViewOptions((16, 16), multiple=32, scale_range=(1.0, 1.0), flip_prob=0.0), ignore_index=255)
    image, label = torch.full((3, 10, 14), 9, dtype=torch.uint8), torch.zeros(10, 14, dtype=torch.uint8)
    inside = torch.zeros(32, 32, dtype=torch.bool)
    inside[:10, :14] = True
    picture, padded = views.labeled(image, label, seed=1)
    assert torch.equal(padded == 0, inside) and torch.equal(padded == 255, ~inside)
    assert (picture[:, inside] == 9).all()
    assert picture[:, ~inside].unique(dim=1).flatten().tolist() == list(MEAN_COLOR)
    weak, strong, valid = views.unlabeled(image, 1, 2)
    assert torch.equal(valid, inside)
    assert torch.equal(weak, picture) and torch.equal(strong[:, ~inside], weak[:, ~inside])


# --- C <= r_l removes every unlabeled negative ---


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_few_classes_still_have_unlabeled_negatives(classes):
    rng = torch.Generator().manual_seed(0)
    logits, features = torch.randn(2, classes, 6, 6, generator=rng), torch.randn(2, 4, 6, 6, generator=rng)
    criterion = U2PLCriterion(
        classes, 4, bank_capacity=100, max_keys_per_step=0, positive_threshold=0.0, key_encoder="student"
    )
    labels = torch.full((1, 6, 6), 255)  # only the unlabeled image can give a negative
    losses = step(criterion, logits.requires_grad_(), features.requires_grad_(), labels)
    assert losses.statistics["negatives"].sum() > 0
    assert losses.contrastive > 0


@pytest.mark.parametrize(("classes", "low_rank"), [(2, 2), (3, 3), (3, 7), (1, 1)])
def test_low_rank_of_all_classes_raises(classes, low_rank):
    with pytest.raises(ValueError, match=rf"low_rank.*{classes - 1}"):
        U2PLCriterion(classes, 4, low_rank=low_rank)


# --- division by zero ---


def test_no_reliable_pixel_gives_zero_and_no_gradient():
    # All entropies equal the threshold, so no pixel is below it.
    logits = torch.randn(2, 3, 4, 4).requires_grad_()
    criterion = U2PLCriterion(3, None)
    labels, valid = torch.full((1, 4, 4), 255), torch.ones(1, 4, 4, dtype=torch.bool)
    pseudo = criterion.pseudo_labels(logits[1:].detach(), valid)._replace(entropy=torch.full((1, 4, 4), 0.5))
    losses = criterion(SegmentationOutput(logits), labels, pseudo)
    losses.total.backward()
    assert losses.statistics["lambda_u"] == 0 and losses.statistics["reliable_share"] == 0
    assert losses.unsupervised == 0 and losses.total == 0 and losses.finite
    assert not logits.grad.any()


def test_empty_crops_give_zero_loss_and_gradient():
    logits, features = torch.randn(2, 3, 4, 4).requires_grad_(), torch.randn(2, 5, 4, 4).requires_grad_()
    criterion = U2PLCriterion(3, 5, bank_capacity=8, key_encoder="student")
    labels, valid = torch.full((1, 4, 4), 255, dtype=torch.uint8), torch.zeros(1, 4, 4, dtype=torch.bool)
    losses = step(criterion, logits, features, labels, valid=valid)
    losses.total.backward()
    assert [x.item() for x in (losses.supervised, losses.unsupervised, losses.contrastive)] == [0, 0, 0]
    assert losses.finite
    assert not logits.grad.any() and not features.grad.any()
    assert not criterion.bank.pushed.any()


def test_class_without_anchors_gives_no_nan():
    label = torch.zeros(2, 4, 4, dtype=torch.int64)
    label[:, 0] = 1  # only classes 0 and 1; class 2 has no anchor and no prototype
    logits, features = peaked_logits(label, 3, [[1], [0], []]), torch.randn(2, 5, 4, 4).requires_grad_()
    criterion = U2PLCriterion(3, 5, bank_capacity=16, low_rank=2, key_encoder="student")
    losses = step(criterion, logits.requires_grad_(), features, label[:1])
    losses.total.backward()
    assert losses.statistics["anchors"].tolist()[2] == 0
    assert losses.contrastive > 0 and losses.finite
    assert features.grad.isfinite().all() and features.grad.any()


def test_the_mean_runs_over_the_classes_that_took_part():
    """Check that with anchors and keys in two of four classes, the loss is the mean over two."""
    label = torch.zeros(2, 4, 4, dtype=torch.int64)
    label[:, :2] = 1
    logits = peaked_logits(label, 4, [[1], [0], [], []])
    features = torch.eye(4)[label].movedim(-1, 1).contiguous()
    criterion = U2PLCriterion(
        4, 4, bank_capacity=16, low_rank=2, num_negatives=3, max_keys_per_step=0, key_encoder="student"
    )
    losses = step(criterion, logits.requires_grad_(), features.requires_grad_(), label[:1])
    # Every anchor lies on its prototype and is orthogonal to its keys: log(1 + 3 e^-2) in either class.
    assert losses.contrastive.item() == pytest.approx(math.log(1 + 3 * math.exp(-2)), rel=1e-5)


# --- the bank ---


def test_bank_is_one_buffer_written_in_place_that_follows_the_module():
    bank = MemoryBank([4, 6], 3)
    assert set(bank.state_dict()) == {"bank", "offsets", "pushed"}
    pointers = bank.bank.data_ptr(), bank.pushed.data_ptr()
    for _ in range(5):
        bank.push(torch.randn(7, 3), torch.full((7, 1), 3, dtype=torch.int32))
    assert (bank.bank.data_ptr(), bank.pushed.data_ptr()) == pointers
    assert all(buffer.device.type == "meta" for buffer in bank.to("meta").buffers())


def test_threshold_and_losses_never_wait_for_the_device():
    """Run on CUDA tensors without data, where reading any value on the host raises an error."""
    with FakeTensorMode(), torch.device("cuda"):
        logits = torch.randn(4, 5, 8, 8)
        labels = torch.zeros(2, 32, 32, dtype=torch.uint8)
        criterion = U2PLCriterion(5, None, ohem=(0.7, 100))
        pseudo = criterion.pseudo_labels(logits[2:], torch.ones(2, 32, 32, dtype=torch.bool))
        losses = criterion(SegmentationOutput(logits), labels, pseudo)
        assert losses.statistics["gamma"].device.type == losses.total.device.type == "cuda"
        with pytest.raises(DataDependentOutputException):  # confirm that a read does raise
            losses.total.item()


def test_state_dict_restores_the_bank():
    bank, copy = MemoryBank([4, 6], 3), MemoryBank([4, 6], 3)
    bank.push(torch.randn(9, 3), torch.full((9, 1), 3, dtype=torch.int32))
    copy.load_state_dict(bank.state_dict())
    rows, mask = torch.randn(3, 3), torch.tensor([[1], [2], [3]], dtype=torch.int32)
    for either in (bank, copy):
        either.push(rows, mask)
    assert all(torch.equal(a, b) for a, b in zip(bank.buffers(), copy.buffers(), strict=True))


def test_ring_advances_by_the_number_of_keys_and_drops_the_oldest():
    bank = MemoryBank([5, 3], 2, max_keys_per_step=0)
    rings, serial = oracle.Rings([5, 3]), 0
    for count in (2, 2, 3, 11, 0, 1):
        angles = 0.1 * np.arange(serial, serial + count)
        serial += count
        rows = np.stack((np.cos(angles), np.sin(angles)), 1).astype(np.float32)
        sets = [list(range(count)), list(range(0, count, 2))]
        bank.push(torch.from_numpy(rows), torch.from_numpy(oracle.words(sets, count)))
        rings.push(rows, sets)
        assert bank.pushed.tolist() == rings.pushed
        assert bank.fill.tolist() == [rings.fill(c) for c in range(2)]
        assert np.abs(bank.bank.numpy() - rings.table(2)).max() < 1e-6


def test_unwritten_rows_are_never_sampled():
    bank = MemoryBank([8, 8, 8], 2, max_keys_per_step=0)
    # Three keys for class 0, eleven for class 1, none for class 2.
    mask = torch.full((11, 1), 0b10, dtype=torch.int32)
    mask[:3] = 0b11
    bank.push(torch.randn(11, 2), mask)
    draws = torch.linspace(0, LARGEST_DRAW, 400, dtype=torch.float64).long().expand(3, 20, 400)
    slots = reference.ring_slots(draws, bank.offsets, bank.pushed)
    assert sorted(slots[0].unique().tolist()) == [0, 1, 2]
    assert sorted(slots[1].unique().tolist()) == list(range(8))
    # "full" reads the three keys too, not the five zero rows behind them.
    anchors, positives = torch.randn(3, 2, 2), torch.randn(3, 2)
    weight = torch.tensor([1.0, 0.0, 0.0])
    arguments = (anchors, weight, positives, bank.bank, bank.offsets, bank.pushed)
    three = torch.tensor([[0, 1, 2]] * 3)
    torch.testing.assert_close(
        reference.info_nce(*arguments, negatives="full"),
        reference.info_nce(*arguments, indices=three, negatives="shared"),
    )


def test_default_cap_gives_the_ring_a_memory_and_zero_takes_all():
    mask, rows = torch.ones(500, 1, dtype=torch.int32), torch.randn(500, 2)
    for cap, expected in ((None, 320 // 16), (0, 500), (7, 7)):
        bank = MemoryBank([320], 2, max_keys_per_step=cap)
        bank.push(rows, mask, draw=torch.tensor([123456789]))
        assert bank.pushed.tolist() == [expected]


def test_a_step_that_is_not_finite_pushes_nothing():
    logits, features = torch.randn(2, 3, 4, 4).requires_grad_(), torch.randn(2, 5, 4, 4)
    features[0, 0, 0, 0] = math.nan
    criterion = U2PLCriterion(3, 5, bank_capacity=8, key_encoder="student")
    losses = step(criterion, logits, features.requires_grad_(), torch.randint(0, 3, (1, 4, 4)))
    assert not losses.finite
    assert not criterion.bank.pushed.any() and not criterion.bank.bank.any()


# --- validation ---


def test_miou_comes_from_one_matrix_not_from_a_mean_over_images():
    # A large image that is entirely correct and a small one that is entirely wrong.
    pairs = [
        (np.zeros((4, 4), dtype=np.int64), np.zeros((4, 4), dtype=np.int64)),
        (np.zeros((1, 2), dtype=np.int64), np.array([[1, 255]])),
    ]
    matrix, per_image = ConfusionMatrix(3, 255), []
    for prediction, label in pairs:
        matrix.update(torch.from_numpy(prediction), torch.from_numpy(label))
        per_image.append(oracle.mean_iou([(prediction, label)], 3, 255))
    # Class 0: 16 of 17. Class 1: 0 of 1. Class 2 occurs nowhere and does not count. Per image it would be 1 and 0.
    assert matrix.miou() == pytest.approx(16 / 17 / 2)
    assert matrix.miou() == pytest.approx(oracle.mean_iou(pairs, 3, 255))
    assert matrix.miou() != pytest.approx(np.mean(per_image))
    assert matrix.iou()[:2].tolist() == pytest.approx([16 / 17, 0])


def test_miou_matches_counting_pixels():
    rng = np.random.default_rng(0)
    pairs = []
    for size in ((3, 4), (1, 1), (5, 2)):
        label = rng.integers(0, 5, size)
        label[rng.random(size) < 0.2] = 255
        pairs.append((rng.integers(0, 5, size), label))
    matrix = ConfusionMatrix(5, 255)
    for prediction, label in pairs:
        matrix.update(torch.from_numpy(prediction).to(torch.uint8), torch.from_numpy(label).to(torch.uint8))
    assert matrix.miou() == pytest.approx(oracle.mean_iou(pairs, 5, 255))


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_validation_shares_hold_each_image_once(world):
    dataset = Shapes("val", size=(32, 32), length=5)
    shares = [[name for _, _, name in evaluation_samples(dataset, None, rank, world)] for rank in range(world)]
    assert sorted(name for share in shares for name in share) == sorted(dataset.names)


# --- an ignore index that is a class ---


@pytest.mark.parametrize("build", [U2PLCriterion, ConfusionMatrix], ids=lambda build: build.__name__)
def test_ignore_index_that_is_a_class_raises(build):
    with pytest.raises(ValueError, match="ignore_index"):
        build(4, ignore_index=0)
