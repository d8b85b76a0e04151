"""Test ops.class_sample: every backend equals the reference exactly, and draws are uniform."""

import pytest
import torch
from torch import Tensor

from tests.ops.contrast_cases import draw32, make_anchor_label, needs_extension
from u2pl_fast import ops, reference

CLASSES = [1, 2, 21, 64, 150, 300]


@pytest.mark.parametrize("pixels", [1, 63, 321])
@pytest.mark.parametrize("classes", CLASSES)
def test_matches_reference(classes: int, pixels: int, backend: str, device: torch.device) -> None:
    label = make_anchor_label(classes, pixels, without=classes // 2).to(device)
    draws = draw32(classes, 9).to(device)
    draws[:, 0], draws[:, 1] = 0, (1 << 32) - 1
    index = ops.class_sample(label, classes, draws)
    assert torch.equal(index, reference.class_sample(label, classes, draws))
    assert (index[classes // 2] == -1).all()
    drawn = index[index >= 0]
    owner = torch.arange(classes, device=device)[:, None].expand_as(index)[index >= 0]
    assert torch.equal(label[drawn].long(), owner)


def test_more_pixels_than_a_block(backend: str, device: torch.device) -> None:
    label, draws = make_anchor_label(3, 40_001).to(device), draw32(3, 50).to(device)
    first = ops.class_sample(label, 3, draws)
    assert torch.equal(first, reference.class_sample(label, 3, draws))
    torch.set_num_threads(2)
    assert torch.equal(first, ops.class_sample(label, 3, draws))


@pytest.mark.parametrize("present", [0.0, 1.0])
def test_no_anchors_and_no_draws(present: float, backend: str, device: torch.device) -> None:
    label = make_anchor_label(4, 30, present).to(device)
    assert (ops.class_sample(label, 4, draw32(4, 3).to(device)) >= 0).all() == bool(present)
    assert ops.class_sample(label, 4, draw32(4, 0).to(device)).shape == (4, 0)
    assert (ops.class_sample(label[:0], 4, draw32(4, 3).to(device)) == -1).all()


def test_draws_are_uniform(backend: str, device: torch.device) -> None:
    """Check chi-square with 9 degrees of freedom: it exceeds 27.9 once in a thousand."""
    label = torch.zeros(17, dtype=torch.int16, device=device)
    label[3::2] = -1
    members = (label == 0).nonzero().flatten()
    index = ops.class_sample(label, 1, draw32(1, 10_000, seed=5).to(device)).flatten()
    counts = torch.stack([(index == m).sum() for m in members]).double()
    expected = 10_000 / len(members)
    assert counts.sum() == 10_000 and len(members) == 10
    assert ((counts - expected) ** 2 / expected).sum() < 27.9


def test_opcheck(backend: str, device: torch.device) -> None:
    arguments = (make_anchor_label(21, 50).to(device), 21, draw32(21, 7).to(device))
    torch.library.opcheck(torch.ops.u2pl_fast.class_sample, arguments)


def test_compiles_without_graph_breaks(backend: str, device: torch.device) -> None:
    def f(label: Tensor, draws: Tensor) -> Tensor:
        return ops.class_sample(label, 5, draws) + 1

    arguments = make_anchor_label(5, 40).to(device), draw32(5, 6).to(device)
    assert torch.equal(torch.compile(f, fullgraph=True, backend="aot_eager")(*arguments), f(*arguments))


@pytest.mark.parametrize(
    ("label", "classes", "draws", "error", "name"),
    [
        (torch.zeros(4, 2, dtype=torch.int16), 3, draw32(3, 2), ValueError, "anchor_label"),
        (torch.zeros(4), 3, draw32(3, 2), TypeError, "anchor_label"),
        (torch.zeros(4, dtype=torch.int16), 0, draw32(0, 2), ValueError, "num_classes"),
        (torch.zeros(4, dtype=torch.int16), 3, draw32(2, 2), ValueError, "draws"),
        (torch.zeros(4, dtype=torch.int16), 3, draw32(3), ValueError, "draws"),
        (torch.zeros(4, dtype=torch.int16), 3, torch.zeros(3, 2), TypeError, "draws"),
    ],
)
def test_wrong_arguments(label: Tensor, classes: int, draws: Tensor, error: type[Exception], name: str) -> None:
    with pytest.raises(error, match=f"^{name}: "):
        ops.class_sample(label, classes, draws)


@needs_extension
def test_class_out_of_range_raises_on_the_cpu() -> None:
    with ops.use_backend("cpu"), pytest.raises(ValueError, match="anchor_label: 9"):
        ops.class_sample(torch.tensor([0, 9], dtype=torch.int16), 3, draw32(3, 2))
