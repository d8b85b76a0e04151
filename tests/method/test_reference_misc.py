"""Test schedules, weights, EMA, pooling and random streams of the reference, against loops and by hand."""

import numpy as np
import pytest
import torch

from tests import oracle
from u2pl_fast import ops, reference
from u2pl_fast.utils import randomness

# --- schedules and weights ---


def test_unreliable_share_falls_from_alpha_0_to_zero():
    assert reference.unreliable_share(0.2, 0, 10) == 0.2
    assert reference.unreliable_share(0.2, 5, 10) == pytest.approx(0.1)
    assert reference.unreliable_share(0.2, 10, 10) == 0
    # T is not rounded: 10 steps of 4 to the epoch are 2.5 epochs, so epoch 2 is four fifths of the way.
    assert reference.unreliable_share(0.2, 2, 2.5) == pytest.approx(0.04)
    for epoch in range(7):
        expected = oracle.unreliable_share(0.35, epoch, 6.5)
        assert reference.unreliable_share(0.35, epoch, 6.5) == pytest.approx(expected)


def test_unsupervised_weight_by_hand():
    # 100 valid, 80 reliable: 1.25 times the base weight.
    assert reference.unsupervised_weight(2.0, torch.tensor(100), torch.tensor(80)).item() == pytest.approx(2.5)
    assert reference.unsupervised_weight(2.0, torch.tensor(100), torch.tensor(80), cap=2.25).item() == 2.25
    none = reference.unsupervised_weight(1.0, torch.tensor(0), torch.tensor(0), cap=4.0)
    assert none.item() == 0 and none.shape == ()


@pytest.mark.parametrize("cap", [None, 1.5, 1e9])
def test_unsupervised_weight_matches_the_formula(cap):
    for valid, reliable in ((1, 1), (7, 0), (7, 3), (10**7 + 1, 3)):
        got = reference.unsupervised_weight(0.7, torch.tensor(valid), torch.tensor(reliable), cap=cap)
        assert got.item() == pytest.approx(oracle.unsupervised_weight(0.7, valid, reliable, cap), rel=1e-6)


# --- EMA ---


def test_ema_momentum_by_hand():
    # The first update copies the student; then 1/2, 2/3, 3/4 and so on up to m.
    got = [reference.ema_momentum(k, 0.7) for k in range(5)]
    assert got == pytest.approx([0, 1 / 2, 2 / 3, 0.7, 0.7])
    assert reference.ema_momentum(10**6, 0.99) == 0.99
    for k in (0, 1, 50, 98, 99, 100, 1000):
        assert reference.ema_momentum(k, 0.99) == pytest.approx(oracle.ema_momentum(k, 0.99))


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.99, 1.0])
def test_ema_update_matches_loops(momentum):
    rng = np.random.default_rng(0)
    old, new = [rng.normal(size=(3, 5)).astype(np.float32) for _ in range(2)]
    teacher = [torch.from_numpy(old.copy()), torch.tensor(3), torch.tensor([True, False])]
    student = [torch.from_numpy(new.copy()), torch.tensor(8), torch.tensor([False, True])]
    pointers = [t.data_ptr() for t in teacher]
    assert reference.ema_update(teacher, student, momentum) is None
    assert oracle.relative_error(teacher[0], oracle.ema(old, new, momentum)) < 1e-6
    assert teacher[1].item() == 8 and teacher[2].tolist() == [False, True]  # counters and flags are copied
    assert [t.data_ptr() for t in teacher] == pointers
    assert (student[0].numpy() == new).all()


def test_first_ema_update_copies_bit_for_bit():
    teacher, student = [torch.randn(100) * 1e6], [torch.randn(100)]
    reference.ema_update(teacher, student, reference.ema_momentum(0, 0.99))
    assert torch.equal(teacher[0], student[0])


def test_ema_gate_selects_and_does_not_multiply():
    nan = [torch.tensor([float("nan"), float("inf")]), torch.tensor(9)]
    teacher = [torch.tensor([1.0, 2.0]), torch.tensor(3)]
    reference.ema_update(teacher, nan, 0.5, gate=torch.tensor(False))
    assert teacher[0].tolist() == [1, 2] and teacher[1].item() == 3
    reference.ema_update(teacher, [torch.tensor([3.0, 4.0]), torch.tensor(9)], 0.5, gate=torch.tensor(True))
    assert teacher[0].tolist() == [2, 3] and teacher[1].item() == 9


def test_ema_of_lists_of_different_lengths_raises():
    with pytest.raises(ValueError):
        reference.ema_update([torch.zeros(1)], [], 0.5)


# --- pooling ---


@pytest.mark.parametrize("stride", [1, 2])
def test_pooling_of_fine_grids_is_the_mean_of_blocks(stride):
    x = np.random.default_rng(1).normal(size=(2, 3, 16 // stride, 24 // stride)).astype(np.float32)
    got = reference.pool_to_stride4(torch.from_numpy(x), (16, 24))
    block, expected = 4 // stride, np.zeros((2, 3, 4, 6))
    for b, c, i, j in np.ndindex(*expected.shape):
        expected[b, c, i, j] = x[b, c, i * block : (i + 1) * block, j * block : (j + 1) * block].mean()
    assert oracle.relative_error(got, expected) < 1e-6


@pytest.mark.parametrize(("grid", "size"), [((4, 6), (16, 24)), ((2, 3), (16, 24)), ((129, 129), (513, 513))], ids=str)
def test_grids_of_stride_4_and_coarser_are_unchanged(grid, size):
    x = torch.randn(1, 2, *grid)
    assert torch.equal(reference.pool_to_stride4(x, size), x)


def test_pooling_of_odd_sizes_averages():
    x = torch.full((1, 1, 13, 9), 2.5)
    pooled = reference.pool_to_stride4(x, (13, 9))
    assert pooled.shape == (1, 1, 4, 3)
    torch.testing.assert_close(pooled, torch.full((1, 1, 4, 3), 2.5))


# --- random streams ---


def test_streams_are_stable_and_distinct():
    keys = [(0,), (1,), (0, "mix"), (0, "mix", 1), (0, 1, "mix"), (0, "draw"), (0, 1, 1), (0, 11), (0, "1", 1)]
    numbers = {key: randomness.stream(*key) for key in keys}
    assert all(0 <= number < 1 << 63 for number in numbers.values())
    distinct = {tuple(str(part) for part in key) for key in keys}
    assert len(set(numbers.values())) == len(distinct)
    assert all(randomness.stream(*key) == number for key, number in numbers.items())


def test_draws_depend_only_on_their_key():
    first = ops.draw32((4, 8), randomness.generator(3, 17, "anchors"))
    torch.manual_seed(0)
    torch.rand(100)
    again = ops.draw32((4, 8), randomness.generator(3, 17, "anchors"))
    assert torch.equal(first, again)
    assert not torch.equal(first, ops.draw32((4, 8), randomness.generator(3, 18, "anchors")))


def test_draws_fill_32_bits():
    draws = ops.draw32((4096,), randomness.generator(0, "range"))
    assert draws.dtype == torch.int64
    assert draws.min() >= 0 and draws.max() < 1 << 32
    assert abs((draws.double() / 2**32).mean().item() - 0.5) < 0.03  # 6 standard errors
    assert (draws >> 31).sum() > 1800 and (draws & 1).sum() > 1800
