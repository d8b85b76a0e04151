"""Test the ring buffers of the reference against a queue per class, key by key."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import oracle
from u2pl_fast import reference

EMPTY = -7.0  # in slots that must not be read


def make_bank(capacities: list[int], dim: int, dtype: torch.dtype = torch.float32):
    """Return (bank filled with EMPTY, offsets, pushed = 0) for these capacities."""
    offsets = torch.tensor([0, *np.cumsum(capacities).tolist()])
    return torch.full((sum(capacities), dim), EMPTY, dtype=dtype), offsets, torch.zeros(len(capacities)).long()


def push(bank, offsets, pushed, features: np.ndarray, sets: list[list[int]], **arguments) -> None:
    pixels = len(oracle.pixel_vectors(features))
    mask = torch.from_numpy(oracle.words(sets, pixels))
    reference.ring_push(bank, offsets, pushed, torch.from_numpy(features), mask, **arguments)


def check(bank, offsets, pushed, rings: oracle.Rings, tolerance: float = 1e-6) -> None:
    """Compare counts, slots (unwritten ones too) and order with the queues, oldest first."""
    assert pushed.tolist() == rings.pushed
    assert reference.ring_fill(offsets, pushed).tolist() == [rings.fill(c) for c in range(len(rings.capacities))]
    assert np.abs(bank.double().numpy() - rings.table(bank.shape[1], EMPTY)).max() <= tolerance
    for c, capacity in enumerate(rings.capacities):
        for age, key in enumerate(rings.queues[c]):
            number = rings.pushed[c] - rings.fill(c) + age
            row = bank[offsets[c] + number % capacity].double().numpy()
            assert np.abs(row - key).max() <= tolerance, (c, age)


def test_push_by_hand():
    bank, offsets, pushed = make_bank([2, 3], 2)
    # Class 0 takes pixels 0, 1, 2 into two slots: pixel 0 goes to slot 0 and is overwritten by pixel 2.
    # Class 1 takes pixel 1 alone. Rows are normalized: (3, 4) becomes (0.6, 0.8).
    features = np.array([[1, 0], [3, 4], [0, 2]], dtype=np.float32)
    push(bank, offsets, pushed, features, [[0, 1, 2], [1]])
    assert pushed.tolist() == [3, 1]
    expected = torch.tensor([[0, 1], [0.6, 0.8], [0.6, 0.8], [EMPTY, EMPTY], [EMPTY, EMPTY]])
    torch.testing.assert_close(bank, expected)
    # The next key of class 0 is number 3 and goes to slot 3 mod 2 = 1; class 1 gets no key and keeps its keys.
    push(bank, offsets, pushed, np.array([[-5, 0]], dtype=np.float32), [[0], []])
    expected[1] = torch.tensor([-1.0, 0.0])
    torch.testing.assert_close(bank, expected)
    assert pushed.tolist() == [4, 1]


@pytest.mark.parametrize("classes", [1, 2, 3, 5, 33, 64])
@pytest.mark.parametrize("maps", [False, True], ids=["rows", "maps"])
def test_pushes_match_queues(classes, maps):
    rng = np.random.default_rng(classes)
    capacities = rng.integers(1, 9, classes).tolist()
    bank, offsets, pushed = make_bank(capacities, 5)
    rings = oracle.Rings(capacities)
    for step in range(6):
        features = rng.normal(size=(2, 5, 3, 3) if maps else (18, 5)).astype(np.float32)
        # A class may get no key, a few, or more than its ring holds.
        share = rng.choice([0.0, 0.1, 0.9], classes)
        sets = [np.flatnonzero(rng.random(18) < share[c]).tolist() for c in range(classes)]
        push(bank, offsets, pushed, features, sets)
        rings.push(features, sets)
        check(bank, offsets, pushed, rings)
        assert step < 5 or max(rings.pushed) > max(capacities), "the case must wrap"


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=4),
    st.lists(st.lists(st.integers(0, 15), min_size=0, max_size=11), min_size=1, max_size=6),
)
def test_pushes_equal_a_queue(capacities, steps):
    bank, offsets, pushed = make_bank(capacities, 2)
    rings, serial = oracle.Rings(capacities), 0
    for bits in steps:  # one pixel per entry; bit c is set if it is a key of class c
        angles = 0.1 + 0.07 * np.arange(serial, serial + len(bits))
        serial += len(bits)
        features = np.stack((np.cos(angles), np.sin(angles)), 1).astype(np.float32)
        sets = [[pixel for pixel, word in enumerate(bits) if word >> c & 1] for c in range(len(capacities))]
        push(bank, offsets, pushed, features, sets)
        rings.push(features, sets)
    check(bank, offsets, pushed, rings)


def test_more_keys_than_slots_keep_the_newest_in_a_ring_already_in_use():
    bank, offsets, pushed = make_bank([4], 1)
    rings = oracle.Rings([4])
    for signs in ([1, 1, 1], [1, -1] * 5 + [-1]):  # 3 keys, then 11 into 4 slots
        features = np.array(signs, dtype=np.float32)[:, None]
        push(bank, offsets, pushed, features, [list(range(len(signs)))])
        rings.push(features, [list(range(len(signs)))])
    check(bank, offsets, pushed, rings)
    assert pushed.tolist() == [14]
    # Keys 10..13 remain, at slots 2, 3, 0, 1: the last four signs are -1, 1, -1, -1.
    assert bank.flatten().tolist() == [-1, -1, -1, 1]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)], ids=str)
def test_half_banks_round_once(dtype, tolerance):
    rng = np.random.default_rng(0)
    features, sets = rng.normal(0, 100, (9, 6)).astype(np.float32), [[0, 2, 3], list(range(9))]
    bank, offsets, pushed = make_bank([5, 5], 6, dtype)
    rings = oracle.Rings([5, 5])
    push(bank, offsets, pushed, features, sets)
    rings.push(features, sets)
    check(bank, offsets, pushed, rings, tolerance)
    exact, _, _ = make_bank([5, 5], 6)
    push(exact, offsets, torch.zeros(2).long(), features, sets)
    assert torch.equal(bank, exact.to(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_features_are_normalized_in_fp32(dtype):
    # The square of 300 exceeds fp16: a norm in fp16 would be infinite.
    features = torch.tensor([[300.0, 400.0]]).to(dtype)
    bank, offsets, pushed = make_bank([1], 2)
    reference.ring_push(bank, offsets, pushed, features, torch.ones(1, 1, dtype=torch.int32))
    torch.testing.assert_close(bank, torch.tensor([[0.6, 0.8]]))


def test_zero_vector_stays_finite():
    bank, offsets, pushed = make_bank([1], 3)
    push(bank, offsets, pushed, np.zeros((1, 3), dtype=np.float32), [[0]])
    assert bank.tolist() == [[0.0, 0.0, 0.0]]


def test_channels_last_maps_are_read_in_bank_order():
    features = torch.randn(2, 4, 3, 2)
    banks = []
    for layout in (torch.contiguous_format, torch.channels_last):
        bank, offsets, pushed = make_bank([12], 4)
        mask = torch.ones(12, 1, dtype=torch.int32)
        reference.ring_push(bank, offsets, pushed, features.to(memory_format=layout), mask)
        banks.append(bank)
    assert torch.equal(*banks)


@pytest.mark.parametrize("open_gate", [True, False])
def test_gate(open_gate):
    bank, offsets, pushed = make_bank([3], 2)
    features = np.full((1, 2), 1.0 if open_gate else np.nan, dtype=np.float32)
    push(bank, offsets, pushed, features, [[0]], gate=torch.tensor(open_gate))
    assert pushed.tolist() == [int(open_gate)]
    assert (bank[0] != EMPTY).all() if open_gate else (bank == EMPTY).all()


def test_push_works_in_place_and_returns_nothing():
    bank, offsets, pushed = make_bank([3], 2)
    before = bank.data_ptr(), pushed.data_ptr()
    mask = torch.ones(1, 1, dtype=torch.int32)
    assert reference.ring_push(bank, offsets, pushed, torch.ones(1, 2), mask) is None
    assert (bank.data_ptr(), pushed.data_ptr()) == before
    assert offsets.tolist() == [0, 3]


def test_counts_past_2_to_31_keep_their_slots():
    bank, offsets, pushed = make_bank([7], 1)
    pushed += (1 << 33) + 2
    push(bank, offsets, pushed, np.ones((2, 1), dtype=np.float32), [[0, 1]])
    slots = [((1 << 33) + 2 + i) % 7 for i in range(2)]
    assert (bank.flatten() == 1).nonzero().flatten().tolist() == sorted(slots)
    assert pushed.tolist() == [(1 << 33) + 4]


def test_drawn_slots_hold_keys_and_reach_all_of_them():
    offsets, pushed = torch.tensor([0, 8, 16, 20]), torch.tensor([3, 0, 9])
    draws = torch.randint(0, 1 << 32, (3, 500), generator=torch.Generator().manual_seed(0))
    slots = reference.ring_slots(draws, offsets, pushed)
    assert slots[0].unique().tolist() == [0, 1, 2]
    assert (slots[1] == 0).all()
    assert slots[2].unique().tolist() == [0, 1, 2, 3]
