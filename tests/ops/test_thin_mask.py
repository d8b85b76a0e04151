"""Test ops.thin_mask: every backend equals the reference bit for bit."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests import oracle
from tests.ops.contrast_cases import draw32, make_mask
from u2pl_fast import ops, reference

CLASSES = [1, 2, 21, 32, 33, 64, 150, 300]


def caps_for(classes: int, most: int) -> Tensor:
    return torch.randint(0, most, (classes,), generator=torch.Generator().manual_seed(classes))


@pytest.mark.parametrize("pixels", [1, 97])
@pytest.mark.parametrize("classes", CLASSES)
def test_matches_reference(classes: int, pixels: int, backend: str, device: torch.device) -> None:
    mask, caps, draw = (
        make_mask(classes, pixels).to(device),
        caps_for(classes, 40).to(device),
        draw32(classes).to(device),
    )
    assert torch.equal(ops.thin_mask(mask, caps, draw), reference.thin_mask(mask, caps, draw))


def test_many_pixels_and_the_largest_draw(backend: str, device: torch.device) -> None:
    mask, caps = make_mask(3, 9001, share=0.9), torch.tensor([7, 4000, 0])
    draw = torch.tensor([(1 << 32) - 1, 1 << 31, 5])
    arguments = [x.to(device) for x in (mask, caps, draw)]
    thinned = ops.thin_mask(*arguments)
    assert torch.equal(thinned, reference.thin_mask(*arguments))
    keys = reference.unpack_mask(mask, 3).sum(0)
    assert reference.unpack_mask(thinned, 3).sum(0).tolist() == [7, 4000, keys[2].item()]


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 80), st.integers(0, 30), st.integers(0, (1 << 32) - 1))
def test_matches_loops(n: int, cap: int, draw: int) -> None:
    mask = torch.ones(n, 1, dtype=torch.int32)
    kept = ops.thin_mask(mask, torch.tensor([cap]), torch.tensor([draw])).flatten().nonzero().flatten().tolist()
    assert kept == oracle.thin(list(range(n)), cap, draw)


def test_opcheck(backend: str, device: torch.device) -> None:
    arguments = (make_mask(33, 50).to(device), caps_for(33, 9).to(device), draw32(33).to(device))
    torch.library.opcheck(torch.ops.u2pl_fast.thin_mask, arguments)


def test_compiles_without_graph_breaks(backend: str, device: torch.device) -> None:
    def f(mask: Tensor, caps: Tensor, draw: Tensor) -> Tensor:
        return ops.thin_mask(mask, caps + 1, draw) & mask

    arguments = [x.to(device) for x in (make_mask(21, 50), caps_for(21, 9), draw32(21))]
    assert torch.equal(torch.compile(f, fullgraph=True, backend="aot_eager")(*arguments), f(*arguments))


@pytest.mark.parametrize(
    ("mask", "caps", "draw", "error", "name"),
    [
        (torch.zeros(4, 2, dtype=torch.int32), torch.zeros(21).long(), draw32(21), ValueError, "mask"),
        (torch.zeros(4, dtype=torch.int32), torch.zeros(21).long(), draw32(21), ValueError, "mask"),
        (torch.zeros(4, 1), torch.zeros(21).long(), draw32(21), TypeError, "mask"),
        (torch.zeros(4, 1, dtype=torch.int32), torch.zeros(21), draw32(21), TypeError, "max_keys"),
        (torch.zeros(4, 1, dtype=torch.int32), torch.zeros(21).long(), draw32(20), ValueError, "draw"),
        (torch.zeros(4, 1, dtype=torch.int32), torch.zeros(0).long(), draw32(0), ValueError, "max_keys"),
    ],
)
def test_wrong_arguments(mask: Tensor, caps: Tensor, draw: Tensor, error: type[Exception], name: str) -> None:
    with pytest.raises(error, match=f"^{name}: "):
        ops.thin_mask(mask, caps, draw)
