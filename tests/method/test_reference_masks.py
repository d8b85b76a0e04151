"""Test threshold, partition, grid rule, ranks, anchors, negatives and thinning, against loops and by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import oracle
from u2pl_fast import reference

few = settings(max_examples=60, deadline=None, derandomize=True)
CLASSES = [1, 2, 3, 5, 33, 64]


# --- quantile ---


def test_quantile_by_hand():
    x, mask = torch.tensor([4.0, 1.0, 99.0, 2.0, 3.0]), torch.tensor([True, True, False, True, True])
    # Sorted 1 2 3 4; position 0.8 * 3 = 2.4, so 3 + 0.4.
    assert reference.masked_quantile(x, mask, 0.8).item() == pytest.approx(3.4)
    assert reference.masked_quantile(x, mask, 0.0).item() == 1
    assert reference.masked_quantile(x, mask, 1.0).item() == 4
    assert reference.masked_quantile(x, mask, torch.tensor(0.5)).item() == 2.5


@few
@given(
    st.lists(st.tuples(st.floats(-1e6, 1e6, width=32), st.booleans()), min_size=1, max_size=40),
    st.floats(0, 1),
)
def test_quantile_matches_numpy(pairs, q):
    x = np.array([value for value, _ in pairs], dtype=np.float32)
    mask = np.array([taken for _, taken in pairs])
    got = reference.masked_quantile(torch.from_numpy(x), torch.from_numpy(mask), q)
    expected = oracle.masked_quantile(x, mask, q)
    assert got.shape == () and got.dtype == torch.float32
    assert (
        math.isnan(got.item()) if math.isnan(expected) else got.item() == pytest.approx(expected, rel=1e-6, abs=1e-30)
    )


def test_quantile_of_maps_of_any_shape_and_type():
    rng = np.random.default_rng(0)
    x, mask = rng.random((2, 7, 5)), rng.random((2, 7, 5)) < 0.6
    expected = oracle.masked_quantile(x, mask, 0.83)
    exact = reference.masked_quantile(torch.from_numpy(x), torch.from_numpy(mask), 0.83)
    assert exact.dtype == torch.float64 and exact.item() == pytest.approx(expected, rel=1e-12)
    half = torch.from_numpy(x).bfloat16()
    got = reference.masked_quantile(half, torch.from_numpy(mask), 0.83)
    assert got.dtype == torch.float32
    assert got.item() == pytest.approx(oracle.masked_quantile(half.double().numpy(), mask, 0.83), rel=1e-6)


def test_quantile_of_nothing_or_of_nan_is_nan():
    x = torch.tensor([1.0, math.nan, 3.0])
    assert reference.masked_quantile(x, torch.zeros(3, dtype=torch.bool), 0.5).isnan()
    assert reference.masked_quantile(x, torch.tensor([True, True, False]), 0.0).isnan()
    # A NaN outside the mask is not read.
    assert reference.masked_quantile(x, torch.tensor([True, False, True]), 0.5).item() == 2
    assert reference.masked_quantile(x[:0], torch.zeros(0, dtype=torch.bool), 0.5).isnan()


def test_quantile_of_more_than_2_to_24_elements_keeps_its_position_exact():
    # Position q(n-1) = 16777217 is odd and above 2^24: in fp32 it would read a neighbor.
    n = (1 << 24) + 3
    x = torch.zeros(n)
    x[:16777217] = -1.0
    assert reference.masked_quantile(x, torch.ones(n, dtype=torch.bool), 16777217 / (n - 1)).item() == 0.0


# --- partition ---


def test_partition_by_hand():
    entropy, valid = torch.tensor([0.1, 0.5, 0.9, 0.1, 0.9]), torch.tensor([True, True, True, False, False])
    reliable, unreliable = reference.partition(entropy, valid, torch.tensor(0.5))
    assert reliable.tolist() == [True, False, False, False, False]  # below
    assert unreliable.tolist() == [False, False, True, False, False]  # above; equal is neither, invalid is neither


def test_partition_with_no_valid_pixel_is_neither():
    entropy, valid = torch.rand(2, 3, 3), torch.zeros(2, 3, 3, dtype=torch.bool)
    gamma = reference.masked_quantile(entropy, valid, 0.8)
    assert not any(part.any() for part in reference.partition(entropy, valid, gamma))
    # A NaN threshold selects no pixel, even where pixels are valid.
    assert not any(part.any() for part in reference.partition(entropy, ~valid, gamma))


def test_partition_at_its_own_quantile():
    rng = np.random.default_rng(1)
    for share in (0.0, 0.05, 0.2, 1.0):
        entropy, valid = rng.random((2, 9, 7)).astype(np.float32), rng.random((2, 9, 7)) < 0.8
        gamma = reference.masked_quantile(torch.from_numpy(entropy), torch.from_numpy(valid), 1 - share)
        got = reference.partition(torch.from_numpy(entropy), torch.from_numpy(valid), gamma)
        for part, expected in zip(got, oracle.partition(entropy, valid, gamma.item()), strict=True):
            assert (part.numpy() == expected).all()
        assert abs(int(got[1].sum()) - share * valid.sum()) <= 1


# --- the integer rule ---


def test_grid_rule_by_hand():
    # Half-pixel, 4 rows of 8: floor((i + 1/2) * 2) = 1 3 5 7. Aligned, 3 rows of 5: 0, 2, 4.
    assert reference.grid_index(4, 8).tolist() == [1, 3, 5, 7]
    assert reference.grid_index(3, 5, align_corners=True).tolist() == [0, 2, 4]
    # Aligned 513 -> 129 reads every fourth row, both ends included.
    assert reference.grid_index(129, 513, align_corners=True).tolist() == list(range(0, 513, 4))
    assert reference.grid_index(1, 7, align_corners=True).tolist() == [0]
    assert reference.grid_index(1, 7).tolist() == [3]
    # Aligned 3 of 4: the middle is halfway between rows 1 and 2 and rounds up: floor((2*1*3 + 2) / 4) = 2.
    assert reference.grid_index(3, 4, align_corners=True).tolist() == [0, 2, 3]


@pytest.mark.parametrize("align_corners", [False, True], ids=["half-pixel", "corners"])
def test_grid_rule_matches_integers(align_corners):
    for out in (1, 2, 3, 5, 8, 33, 129):
        for size in (1, 2, 3, 7, 8, 129, 513, 528):
            got = reference.grid_index(out, size, align_corners=align_corners)
            assert got.dtype == torch.int64
            assert got.tolist() == [oracle.grid_row(i, out, size, align_corners) for i in range(out)], (out, size)


@pytest.mark.parametrize("align_corners", [False, True], ids=["half-pixel", "corners"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.float32], ids=str)
def test_sample_to_grid_matches_loops(align_corners, dtype):
    x = torch.from_numpy(np.random.default_rng(2).integers(0, 2 if dtype == torch.bool else 200, (2, 11, 7))).to(dtype)
    for grid in ((1, 1), (3, 2), (5, 7), (11, 7)):
        got = reference.sample_to_grid(x, grid, align_corners=align_corners)
        assert got.dtype == dtype
        assert (got.numpy() == oracle.sample_to_grid(x.numpy(), grid, align_corners)).all()


# --- ranks ---


def test_rank_by_hand():
    logits = torch.tensor([0.5, 2.0, -1.0, 2.0, 0.5]).view(1, 5, 1, 1)
    # 1 and 3 tie at the top, 0 and 4 behind them: the lower class of a tie comes first.
    assert reference.class_rank(logits).flatten().tolist() == [2, 0, 4, 1, 3]


@pytest.mark.parametrize("classes", CLASSES)
def test_rank_matches_counting(classes):
    # Half-integer logits tie often.
    logits = np.random.default_rng(classes).integers(-4, 5, (2, classes, 3, 5)).astype(np.float32) / 2
    assert (reference.class_rank(torch.from_numpy(logits)).numpy() == oracle.class_rank(logits)).all()


# --- bits ---


def test_bits_by_hand():
    mask = torch.zeros(2, 34, dtype=torch.bool)
    mask[0, [0, 31, 33]] = True
    packed = reference.pack_mask(mask)
    assert packed.dtype == torch.int32
    assert packed.tolist() == [[1 - (1 << 31), 2], [0, 0]]  # bit 31 is the sign
    assert torch.equal(reference.unpack_mask(packed, 34), mask)


@pytest.mark.parametrize("classes", [*CLASSES, 32, 31, 300])
def test_pack_and_unpack_match_loops(classes):
    mask = np.random.default_rng(classes).random((7, classes)) < 0.4
    sets = [np.flatnonzero(mask[:, c]).tolist() for c in range(classes)]
    packed = reference.pack_mask(torch.from_numpy(mask))
    assert (packed.numpy() == oracle.words(sets, 7)).all()
    assert (reference.unpack_mask(packed, classes).numpy() == mask).all()
    assert oracle.sets_of_words(packed.numpy(), classes) == sets


# --- anchors and negatives ---


def contrast_case(classes: int, batch: int, grid: tuple[int, int], seed: int):
    """Return random logits, labels with ignored pixels, and a partition with all three kinds of pixels."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (batch, classes, *grid)).astype(np.float32)
    label = rng.integers(0, classes, (batch, *grid))
    label[rng.random(label.shape) < 0.2] = 255
    kind = rng.integers(0, 3, label.shape)
    return logits, label, kind == 0, kind == 1


def check_contrast(logits, label, reliable, unreliable, num_labeled, low, high, threshold):
    pixels = label.size
    negatives, anchors = oracle.contrast_sets(logits, label, reliable, unreliable, num_labeled, low, high, threshold)
    got = reference.contrast_masks(
        torch.from_numpy(logits),
        torch.from_numpy(label),
        torch.from_numpy(reliable),
        torch.from_numpy(unreliable),
        num_labeled=num_labeled,
        low_rank=low,
        high_rank=high,
        positive_threshold=threshold,
    )
    mask, anchor_label, keys, counts = got
    assert mask.dtype == torch.int32 and anchor_label.dtype == torch.int16
    assert (mask.numpy() == oracle.words(negatives, pixels)).all()
    assert (anchor_label.numpy() == oracle.anchor_map(anchors, pixels)).all()
    assert keys.tolist() == [len(members) for members in negatives]
    assert counts.tolist() == [len(members) for members in anchors]
    return negatives, anchors


def test_contrast_by_hand():
    # Four classes, one row. Descending logits everywhere: class c has rank c; p is about (0.64, 0.24, 0.09, 0.03).
    logits = torch.tensor([3.0, 2.0, 1.0, 0.0]).view(1, 4, 1, 1).expand(2, 4, 1, 4).contiguous()
    label = torch.tensor([[[0, 1, 2, 255]], [[0, 0, 0, 1]]])
    reliable = torch.tensor([[[False] * 4], [[True, False, False, True]]])
    unreliable = torch.tensor([[[True] * 4], [[False, True, False, False]]])
    got = reference.contrast_masks(
        logits, label, reliable, unreliable, num_labeled=1, low_rank=2, high_rank=3, positive_threshold=0.2
    )
    # Labeled, ranks below 2 are classes 0 and 1: y=0 -> {1}; y=1 -> {0}; y=2 -> {0, 1}; ignored -> nothing.
    # Unlabeled, ranks from 2 to 2: only the unreliable pixel (the second), and only class 2.
    assert got.mask.flatten().tolist() == [0b10, 0b01, 0b11, 0, 0, 0b100, 0, 0]
    # Anchors: labeled y=0 (0.64) and y=1 (0.24), not y=2 (0.09). Unlabeled: only the reliable first and last.
    assert got.anchor_label.tolist() == [0, 1, -1, -1, 0, -1, -1, 1]
    assert got.keys.tolist() == [2, 2, 1, 0]
    assert got.anchors.tolist() == [2, 2, 0, 0]


def test_an_anchor_is_strictly_above_the_threshold():
    # Four equal logits: p = 1/4 exactly.
    everywhere = np.ones((2, 1, 1), dtype=bool)
    for threshold, expected in ((0.25, 0), (0.25 - 2**-20, 2)):
        _, anchors = check_contrast(
            np.zeros((2, 4, 1, 1), dtype=np.float32), everywhere * 3, everywhere, ~everywhere, 1, 3, 4, threshold
        )
        assert len(anchors[3]) == expected


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("num_labeled", [0, 1, 2, 3])
def test_contrast_matches_loops(classes, num_labeled):
    low, high = min(3, classes - 1), min(20, classes)
    case = contrast_case(classes, 3, (5, 3), seed=classes)
    negatives, _ = check_contrast(*case, num_labeled, low, high, 0.3)
    if classes > 1:
        assert any(negatives)


@pytest.mark.parametrize(("low", "high"), [(0, 5), (1, 2), (4, 5), (2, 2), (1, 20)])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 1.0])
def test_contrast_at_other_ranks_and_thresholds(low, high, threshold):
    check_contrast(*contrast_case(5, 2, (4, 3), seed=9), 1, low, high, threshold)


def test_contrast_ranks_ties_like_class_rank():
    rng = np.random.default_rng(4)
    logits = rng.integers(0, 3, (2, 6, 3, 3)).astype(np.float32)
    everywhere = np.ones((2, 3, 3), dtype=bool)
    check_contrast(logits, rng.integers(0, 6, (2, 3, 3)), ~everywhere, everywhere, 1, 2, 4, 0.9)


def test_contrast_one_pixel_and_all_ignored():
    logits, label, reliable, unreliable = contrast_case(3, 1, (1, 1), seed=0)
    for num_labeled in (0, 1):
        check_contrast(logits, label * 0, reliable, unreliable, num_labeled, 2, 3, 0.0)
    logits, label, reliable, _ = contrast_case(5, 2, (3, 3), seed=1)
    ignored, nowhere = np.full(label.shape, 255), np.zeros(label.shape, dtype=bool)
    negatives, anchors = check_contrast(logits, ignored, nowhere, nowhere, 1, 3, 5, 0.3)
    assert not any(negatives) and not any(anchors)


def test_contrast_does_not_read_the_partition_of_labeled_images():
    logits, label, reliable, unreliable = contrast_case(5, 2, (4, 4), seed=2)
    first = check_contrast(logits, label, reliable, unreliable, 1, 3, 5, 0.3)
    reliable[0], unreliable[0] = ~reliable[0], ~unreliable[0]
    assert first == check_contrast(logits, label, reliable, unreliable, 1, 3, 5, 0.3)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32], ids=str)
def test_contrast_takes_small_labels_half_logits_and_channels_last(dtype):
    logits, label, reliable, unreliable = map(torch.from_numpy, contrast_case(5, 2, (3, 4), seed=3))
    arguments = dict(num_labeled=1, low_rank=3, high_rank=5, positive_threshold=0.3)
    half = logits.bfloat16()
    expected = reference.contrast_masks(half.float(), label, reliable, unreliable, **arguments)
    got = reference.contrast_masks(
        half.to(memory_format=torch.channels_last), label.to(dtype), reliable, unreliable, **arguments
    )
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


# --- thinning ---


def test_thin_by_hand():
    # Six keys, three wanted, offset v = (draw * 6) >> 32 = 3: floor((3(r+1) + 3) / 6) moves on at r = 0, 2, 4.
    mask = torch.ones(6, 1, dtype=torch.int32)
    draw = torch.tensor([1 << 31])
    assert reference.thin_mask(mask, torch.tensor([3]), draw).flatten().tolist() == [1, 0, 1, 0, 1, 0]
    # Offset 0: at r = 1, 3, 5.
    assert reference.thin_mask(mask, torch.tensor([3]), draw * 0).flatten().tolist() == [0, 1, 0, 1, 0, 1]
    assert torch.equal(reference.thin_mask(mask, torch.tensor([0]), draw), mask)  # 0 keeps all
    assert torch.equal(reference.thin_mask(mask, torch.tensor([9]), draw), mask)  # and so does more than n


@few
@given(st.integers(0, 200), st.integers(0, 60), st.integers(0, (1 << 32) - 1))
def test_thin_keeps_the_right_number_evenly_spread(n, cap, draw):
    mask = torch.ones(n, 1, dtype=torch.int32)
    kept = reference.thin_mask(mask, torch.tensor([cap]), torch.tensor([draw])).flatten().nonzero().flatten().tolist()
    assert kept == oracle.thin(list(range(n)), cap, draw)
    k = n if cap == 0 else min(cap, n)
    assert len(kept) == k
    gaps = [b - a for a, b in zip(kept, kept[1:], strict=False)]
    assert all(n // k <= gap <= -(-n // k) for gap in gaps)


@pytest.mark.parametrize("classes", CLASSES)
def test_thin_each_class_by_its_own_cap_and_draw(classes):
    rng = np.random.default_rng(classes)
    mask = rng.random((50, classes)) < rng.random(classes)
    mask[:, classes // 2] = False  # an empty class
    caps, draws = rng.integers(0, 12, classes), rng.integers(0, 1 << 32, classes)
    draws[0] = (1 << 32) - 1
    sets = [np.flatnonzero(mask[:, c]).tolist() for c in range(classes)]
    expected = [oracle.thin(s, int(cap), int(draw)) for s, cap, draw in zip(sets, caps, draws, strict=True)]
    got = reference.thin_mask(torch.from_numpy(oracle.words(sets, 50)), torch.from_numpy(caps), torch.from_numpy(draws))
    assert (got.numpy() == oracle.words(expected, 50)).all()


def test_thin_gives_every_key_the_same_chance():
    n, cap, draws = 7, 3, 7 * 64
    kept = torch.zeros(n)
    for i in range(draws):
        draw = torch.tensor([-(-i * (1 << 32) // draws)])
        kept += reference.thin_mask(torch.ones(n, 1, dtype=torch.int32), torch.tensor([cap]), draw).flatten()
    assert kept.tolist() == [draws * cap / n] * n
