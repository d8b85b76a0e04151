"""Test upsampling, statistics, cross-entropy and hard examples of the reference, against loops and by hand."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests import oracle
from u2pl_fast import reference

# batch, classes, grid, full size: one axis at a time, then several (id: BxC-hxw-HxW)
SHAPES = [
    (1, 1, (1, 1), (1, 1)),
    (1, 2, (1, 1), (3, 5)),
    (2, 3, (3, 2), (9, 7)),
    (1, 5, (4, 4), (13, 13)),
    (1, 33, (2, 3), (5, 4)),
    (2, 64, (2, 2), (3, 3)),
    (1, 3, (1, 6), (1, 11)),
    (1, 4, (5, 3), (5, 3)),
    (1, 3, (7, 5), (3, 2)),
]
IDS = [f"{b}x{c}-{h}x{w}-{big_h}x{big_w}" for b, c, (h, w), (big_h, big_w) in SHAPES]
every_shape = pytest.mark.parametrize(("batch", "classes", "grid", "size"), SHAPES, ids=IDS)
both_alignments = pytest.mark.parametrize("align_corners", [False, True], ids=["half-pixel", "corners"])


def random_logits(batch: int, classes: int, grid: tuple[int, int], seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(0, 3, (batch, classes, *grid)).astype(np.float32))


def random_target(shape: tuple[int, ...], classes: int, ignore_index: int, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    target = rng.integers(0, classes, shape)
    target[rng.random(shape) < 0.3] = ignore_index
    return target


# --- upsampling ---


def test_upsample_two_columns_by_hand():
    row = torch.tensor([0.0, 4.0]).view(1, 1, 1, 2)
    # Half-pixel centers: output j of 4 reads (j + 1/2) / 2 - 1/2 = -1/4 (clamped to 0), 1/4, 3/4, 5/4 (held at 1).
    assert reference.upsample(row, (1, 4), align_corners=False).flatten().tolist() == [0.0, 1.0, 3.0, 4.0]
    # Aligned corners: 0, 1/4, 2/4, 3/4, 1 of the way for 5 outputs.
    assert reference.upsample(row, (1, 5), align_corners=True).flatten().tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]


@every_shape
@both_alignments
def test_upsample_matches_loops(batch, classes, grid, size, align_corners):
    logits = random_logits(batch, classes, grid)
    got = reference.upsample(logits, size, align_corners=align_corners)
    assert got.dtype == torch.float32
    assert oracle.relative_error(got, oracle.upsample(logits.numpy(), size, align_corners)) < 1e-6


def test_upsample_widens_half_types_before_it_blends():
    logits = random_logits(1, 3, (2, 3)).bfloat16()
    got = reference.upsample(logits, (5, 7))
    assert got.dtype == torch.float32
    assert torch.equal(got, reference.upsample(logits.float(), (5, 7)))
    assert reference.upsample(logits.double(), (5, 7)).dtype == torch.float64


# --- statistics ---


@every_shape
@both_alignments
def test_pixel_stats_match_loops(batch, classes, grid, size, align_corners):
    logits = random_logits(batch, classes, grid)
    stats = reference.pixel_stats(logits, size, align_corners=align_corners)
    label, confidence, entropy = oracle.pixel_stats(logits.numpy(), size, align_corners)
    assert oracle.relative_error(stats.confidence, confidence) < 1e-5
    assert np.abs(stats.entropy.numpy() - entropy).max() < 1e-5
    # Labels must agree wherever the winner leads by more than rounding.
    full = np.sort(oracle.upsample(logits.numpy(), size, align_corners), axis=1)
    clear = np.ones(label.shape, dtype=bool) if classes == 1 else full[:, -1] - full[:, -2] > 1e-5
    assert clear.mean() > 0.99
    assert (stats.label.numpy()[clear] == label[clear]).all()


def test_pixel_stats_by_hand():
    # p = (1/2, 1/4, 1/4): H = 1/2 log 2 + 2 * 1/4 log 4 = 3/2 log 2. A uniform pixel: H = log 3. Logits shift freely.
    logits = torch.tensor([[math.log(2), 0.0, 0.0], [7.0, 7.0, 7.0], [-50.0, -50.0, 50.0]]).T.reshape(1, 3, 1, 3)
    stats = reference.pixel_stats(logits, (1, 3))
    assert stats.label.flatten().tolist() == [0, 0, 2]
    assert stats.confidence.flatten().tolist() == pytest.approx([1 / 2, 1 / 3, 1.0])
    assert stats.entropy.flatten().tolist() == pytest.approx([1.5 * math.log(2), math.log(3), 0.0], abs=1e-6)


def test_ties_go_to_the_lower_class():
    logits = torch.tensor([1.0, 5.0, 5.0, 2.0, 5.0]).view(1, 5, 1, 1)
    assert reference.pixel_stats(logits, (4, 3)).label.unique().tolist() == [1]


def test_one_class_is_certain():
    stats = reference.pixel_stats(random_logits(2, 1, (2, 3)), (5, 7))
    assert (stats.label == 0).all() and (stats.confidence == 1).all() and (stats.entropy == 0).all()


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e2, 1e4, 1e30])
def test_entropy_stays_between_zero_and_log_c(scale):
    logits = random_logits(1, 5, (6, 6)) * scale
    entropy = reference.pixel_stats(logits, (23, 23)).entropy
    assert (entropy >= 0).all() and (entropy <= math.log(5) + 1e-6).all()


def test_entropy_of_a_confident_pixel_keeps_its_digits():
    # p = (1 - e, e) with e = exp(-12): H = e (12 + 1) to first order = 7.987e-5; 1 - p in fp32 alone would lose it.
    logits = torch.tensor([12.0, 0.0]).view(1, 2, 1, 1)
    assert reference.pixel_stats(logits, (1, 1)).entropy.item() == pytest.approx(oracle.entropy([12.0, 0.0]), rel=1e-2)


@pytest.mark.parametrize(
    ("classes", "dtype"), [(2, torch.uint8), (255, torch.uint8), (256, torch.int16), (300, torch.int16)]
)
def test_label_dtype_holds_every_class_and_the_ignore_index(classes, dtype):
    logits = torch.zeros(1, classes, 1, 1)
    logits[0, -1] = 1
    stats = reference.pixel_stats(logits, (2, 2))
    assert stats.label.dtype == dtype
    assert stats.label.unique().tolist() == [classes - 1]


# --- cross-entropy ---


def test_cross_entropy_by_hand():
    # p = (1/4, 3/4), target 1: -log 3/4. Two pixels, the second ignored: the mean is over one.
    logits = torch.tensor([0.0, math.log(3)]).view(1, 2, 1, 1).expand(1, 2, 1, 2)
    target = torch.tensor([[[1, 255]]])
    assert reference.upsampled_cross_entropy(logits, target).item() == pytest.approx(math.log(4 / 3))
    # Both counted with class weights 1 and 3 and pixel weights 1 and 2: num = log 4 + 2*3*log 4/3, den = 1 + 6.
    target = torch.tensor([[[0, 1]]])
    num, den = reference.upsampled_cross_entropy(
        logits,
        target,
        weight=torch.tensor([1.0, 3.0]),
        pixel_weight=torch.tensor([[[1.0, 2.0]]]),
        reduction="parts",
    )
    assert num.item() == pytest.approx(math.log(4) + 6 * math.log(4 / 3))
    assert den.item() == pytest.approx(7)
    # Smoothing 0.2 over two classes: 0.9 of the target and 0.1 of the other.
    smooth = reference.upsampled_cross_entropy(logits[..., :1], target[..., 1:], label_smoothing=0.2)
    assert smooth.item() == pytest.approx(0.9 * math.log(4 / 3) + 0.1 * math.log(4))


@every_shape
@both_alignments
@pytest.mark.parametrize("extras", [False, True], ids=["plain", "weights+smoothing"])
def test_cross_entropy_value_and_gradient_match_loops(batch, classes, grid, size, align_corners, extras):
    rng = np.random.default_rng(3)
    logits = random_logits(batch, classes, grid)
    target = random_target((batch, *size), classes, 255)
    weight = rng.uniform(0, 2, classes).astype(np.float32) if extras else None
    pixel_weight = rng.uniform(0, 2, target.shape).astype(np.float32) if extras else None
    smoothing = 0.1 if extras else 0.0
    num, den, grad = oracle.cross_entropy(
        logits.numpy(), target, align_corners, weight, pixel_weight, smoothing=smoothing
    )
    arguments = {
        "weight": None if weight is None else torch.from_numpy(weight),
        "pixel_weight": None if pixel_weight is None else torch.from_numpy(pixel_weight),
        "label_smoothing": smoothing,
        "align_corners": align_corners,
    }
    leaf = logits.clone().requires_grad_()
    got_num, got_den = reference.upsampled_cross_entropy(leaf, torch.from_numpy(target), reduction="parts", **arguments)
    got_num.backward()
    assert got_num.item() == pytest.approx(num, rel=1e-5, abs=1e-6)
    assert got_den.item() == pytest.approx(den, rel=1e-5)
    if classes > 1:  # with one class the gradient is zero, so there is no relative error
        assert oracle.relative_error(leaf.grad, grad) < 1e-5
    else:
        assert leaf.grad.abs().max() < 1e-5
    total = reference.upsampled_cross_entropy(logits, torch.from_numpy(target), reduction="sum", **arguments)
    mean = reference.upsampled_cross_entropy(logits, torch.from_numpy(target), **arguments)
    assert total.item() == pytest.approx(num, rel=1e-5, abs=1e-6)
    assert mean.item() == pytest.approx(num / den if den else 0.0, rel=1e-5, abs=1e-6)


@both_alignments
def test_cross_entropy_matches_torch_on_the_upsampled_logits(align_corners):
    logits, weight = random_logits(2, 5, (3, 4)), torch.rand(5) + 0.1
    target = torch.from_numpy(random_target((2, 9, 11), 5, 255))
    full = F.interpolate(logits, (9, 11), mode="bilinear", align_corners=align_corners)
    for smoothing in (0.0, 0.3):
        expected = F.cross_entropy(full, target, weight, ignore_index=255, label_smoothing=smoothing)
        got = reference.upsampled_cross_entropy(
            logits, target, weight=weight, label_smoothing=smoothing, align_corners=align_corners
        )
        assert got.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64], ids=str)
def test_any_integer_target(dtype):
    ignore_index = -1 if dtype == torch.int8 else 255
    logits = random_logits(1, 3, (2, 2))
    target = random_target((1, 5, 5), 3, ignore_index)
    num, den, _ = oracle.cross_entropy(logits.numpy(), target, False, ignore_index=ignore_index)
    got = reference.upsampled_cross_entropy(logits, torch.from_numpy(target).to(dtype), ignore_index=ignore_index)
    assert got.item() == pytest.approx(num / den, rel=1e-5)


@pytest.mark.parametrize("reduction", ["mean", "sum", "parts"])
def test_no_labeled_pixel_gives_zero_loss_and_gradient(reduction):
    logits = random_logits(2, 3, (2, 2)).requires_grad_()
    target = torch.full((2, 5, 5), 255, dtype=torch.uint8)
    out = reference.upsampled_cross_entropy(logits, target, reduction=reduction)
    for value in out if reduction == "parts" else (out,):
        assert value.item() == 0
    (out[0] if reduction == "parts" else out).backward()
    assert logits.grad.abs().max() == 0


def test_pixel_weight_of_an_ignored_pixel_is_not_read():
    logits = random_logits(1, 3, (1, 2)).requires_grad_()
    target, pixel_weight = torch.tensor([[[2, 255]]]), torch.tensor([[[1.0, math.nan]]])
    loss = reference.upsampled_cross_entropy(logits, target, pixel_weight=pixel_weight)
    loss.backward()
    assert loss.item() == pytest.approx(oracle.negative_log_probability(logits[0, :, 0, 0].tolist())[2], rel=1e-5)
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("label", [3, 254, -1])
def test_label_out_of_range_names_target(label):
    target = torch.zeros(1, 4, 4, dtype=torch.int64)
    target[0, 2, 1] = label
    with pytest.raises(ValueError, match=rf"target.*{label}"):
        reference.upsampled_cross_entropy(random_logits(1, 3, (2, 2)), target)


@both_alignments
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_gradcheck(align_corners, smoothing):
    logits = random_logits(2, 3, (2, 3)).double().requires_grad_()
    target = torch.from_numpy(random_target((2, 4, 7), 3, 255))
    weight = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)
    pixel_weight = torch.rand(2, 4, 7, dtype=torch.float64)
    for reduction in ("mean", "sum"):
        assert torch.autograd.gradcheck(
            lambda x, reduction=reduction: reference.upsampled_cross_entropy(
                x,
                target,
                weight=weight,
                pixel_weight=pixel_weight,
                label_smoothing=smoothing,
                align_corners=align_corners,
                reduction=reduction,
            ),
            (logits,),
        )


# --- hard examples ---


def one_row(probabilities: list[float]) -> torch.Tensor:
    """Return logits of one row of pixels of two classes, where class 1 has these probabilities."""
    p = torch.tensor(probabilities, dtype=torch.float64)
    return torch.stack((torch.zeros_like(p), (p / (1 - p)).log())).view(1, 2, 1, -1).float()


@pytest.mark.parametrize(
    ("threshold", "min_kept", "expected"),
    [
        (0.5, 0, [1, 0, 0, 1, 0]),  # only the threshold: 0.2 and 0.1
        (0.5, 1, [1, 0, 0, 1, 0]),  # the smallest is 0.1, below the threshold: no change
        (0.5, 3, [1, 1, 0, 1, 0]),  # the third smallest is 0.7
        (0.0, 2, [1, 0, 0, 1, 0]),  # only the count
        (0.0, 9, [1, 1, 1, 1, 0]),  # more than exist: all labeled pixels, never the ignored one
    ],
)
def test_ohem_by_hand(threshold, min_kept, expected):
    logits = one_row([0.2, 0.7, 0.9, 0.1, 0.01])
    target = torch.tensor([[[1, 1, 1, 1, 255]]])
    keep = reference.ohem_mask(logits, target, threshold=threshold, min_kept=min_kept)
    assert keep.dtype == torch.bool
    assert keep.flatten().tolist() == [bool(x) for x in expected]


@every_shape
@both_alignments
@pytest.mark.parametrize(("threshold", "min_kept"), [(0.3, 0), (0.1, 4), (0.0, 10**6)])
def test_ohem_matches_loops(batch, classes, grid, size, align_corners, threshold, min_kept):
    logits = random_logits(batch, classes, grid)
    target = random_target((batch, *size), classes, 255)
    keep, probability, cut = oracle.ohem_mask(logits.numpy(), target, threshold, min_kept, 255, align_corners)
    got = reference.ohem_mask(
        logits, torch.from_numpy(target), threshold=threshold, min_kept=min_kept, align_corners=align_corners
    ).numpy()
    distance = np.abs(probability - cut)
    near = distance < 1e-5
    assert (distance[near] < 1e-12).all()  # only the pixel at the limit and its exact copies
    assert (got == keep)[~near].all()
    assert got.sum() >= min(min_kept, (target != 255).sum())


def test_ohem_with_nothing_labeled_keeps_nothing():
    target = torch.full((1, 5, 5), 255)
    assert not reference.ohem_mask(random_logits(1, 3, (2, 2)), target, threshold=0.7, min_kept=8).any()
