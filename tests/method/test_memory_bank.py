"""Test the bank as a module: first-in-first-out against a deque, thinning, state and errors."""

from collections import deque

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from u2pl_fast.memory_bank import MemoryBank
from u2pl_fast.reference import pack_mask


def rings(bank: MemoryBank) -> list[list[float]]:
    """Return the first channel of each class's keys, oldest first."""
    out = []
    for c, (start, pushed) in enumerate(zip(bank.offsets.tolist(), bank.pushed.tolist(), strict=False)):
        capacity = int(bank.offsets[c + 1]) - start
        kept = range(max(0, pushed - capacity), pushed)
        out.append([bank.bank[start + j % capacity, 0].item() for j in kept])
    return out


def keys_for(numbers: list[int]) -> torch.Tensor:
    """Return unit vectors that differ in their first channel."""
    angle = torch.tensor(numbers, dtype=torch.float64) / 1000
    return torch.stack((angle.sin(), angle.cos()), 1).float()


@settings(max_examples=60, deadline=None)
@given(
    capacities=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    steps=st.lists(st.lists(st.integers(0, 15), max_size=12), max_size=6),
)
def test_pushes_match_a_deque_per_class(capacities, steps):
    bank = MemoryBank(capacities, 2, max_keys_per_step=0)
    oracle = [deque(maxlen=k) for k in capacities]
    number = 0
    for pixels in steps:
        mask = torch.zeros(len(pixels), len(capacities), dtype=torch.bool)
        features = keys_for(list(range(number, number + len(pixels)))).reshape(-1, 2)
        for row, bits in enumerate(pixels):
            for c in range(len(capacities)):
                if bits >> c & 1:
                    mask[row, c] = True
                    oracle[c].append(features[row, 0].item())
        number += len(pixels)
        bank.push(features, pack_mask(mask))
    for kept, expected in zip(rings(bank), oracle, strict=True):
        torch.testing.assert_close(torch.tensor(kept), torch.tensor(list(expected)))
    assert bank.fill.tolist() == [len(ring) for ring in oracle]


def test_cap_limits_the_keys_of_one_step_and_keeps_their_order():
    bank = MemoryBank([100, 100], 2, max_keys_per_step=[3, 0])
    features = keys_for(list(range(10)))
    bank.push(features, pack_mask(torch.ones(10, 2, dtype=torch.bool)), draw=torch.tensor([1 << 31, 0]))
    thinned, whole = rings(bank)
    assert bank.pushed.tolist() == [3, 10]
    assert thinned == sorted(thinned) and set(thinned) <= set(whole)


def test_default_cap_is_a_sixteenth_of_the_capacity_and_at_least_one():
    assert MemoryBank([160, 5], 2).max_keys.tolist() == [10, 1]


def test_state_dict_restores_the_bank():
    def push(bank, first):
        bank.push(keys_for(list(range(first, first + 5))), pack_mask(torch.ones(5, 2, dtype=torch.bool)))

    straight, before = (MemoryBank([4, 9], 2, max_keys_per_step=0) for _ in range(2))
    for first in (0, 5):
        push(straight, first)
    push(before, 0)
    after = MemoryBank([4, 9], 2, max_keys_per_step=0)
    after.load_state_dict(before.state_dict())
    push(after, 5)
    assert rings(after) == rings(straight)


def test_gate_stops_the_push():
    bank = MemoryBank([4], 2)
    bank.push(keys_for([1]), pack_mask(torch.ones(1, 1, dtype=torch.bool)), gate=torch.tensor(False))
    assert bank.pushed.tolist() == [0] and not bank.bank.any()


@pytest.mark.parametrize(
    ("arguments", "options", "name"),
    [
        (([], 2), {}, "capacities"),
        (([3, 0], 2), {}, "capacities"),
        (([3], 2), {"dtype": torch.float64}, "dtype"),
        (([3], 2), {"max_keys_per_step": -1}, "max_keys_per_step"),
        (([3], 2), {"scope": "global"}, "scope"),
        (([3], 2), {"scope": "gather", "max_keys_per_step": 0}, "max_keys_per_step"),
    ],
)
def test_error_names_the_argument(arguments, options, name):
    with pytest.raises(ValueError, match=name):
        MemoryBank(*arguments, **options)
