"""Compare the predicted traffic between processes with counts by hand."""

import pytest

from u2pl_fast.training.traffic import HISTOGRAMS, step_traffic

SIZES = {"parameters": 1000, "buffers": 10, "num_classes": 5}


def test_two_processes():
    parts = step_traffic(2, dim=8, shared_keys=3, key_bytes=2, **SIZES)
    assert parts == {
        "gradients": 4000,
        "batch norm statistics": 40,
        "entropy histograms": HISTOGRAMS,
        "class centers": 5 * (8 * 4 + 8),
        "shared bank": 5 * (3 * 8 * 2 + 8),
    }


def test_one_process_receives_nothing():
    assert not any(step_traffic(1, dim=8, **SIZES).values())


@pytest.mark.parametrize("world", [4, 1024])
def test_a_shared_bank_does_not_grow_with_the_processes(world):
    """Each offers its share of the cap; only rounding up and the counts grow."""
    parts = step_traffic(world, dim=256, shared_keys=-(-1875 // world), **SIZES)
    assert parts["shared bank"] < 5 * ((1875 + world) * 256 * 4 + 8 * world)
    assert parts["gradients"] < 2 * 4 * 1000
