"""Test ops.ohem_mask: every backend against the reference."""

import pytest
import torch
from torch import Tensor

from tests.ops.op_cases import BASE, CASES, HALF, HALVES, LAYOUTS, TIE, Case, ignore_index, make_logits, make_target
from u2pl_fast import ops, reference


def assert_keep(logits: Tensor, target: Tensor, case: Case, threshold: float, min_kept: int) -> Tensor:
    """Check equality except within ``TIE`` of the limit, and that few pixels are that close."""
    chosen = {"ignore_index": ignore_index(case), "align_corners": case.align_corners}
    actual = ops.ohem_mask(logits, target, threshold=threshold, min_kept=min_kept, **chosen)
    expected = reference.ohem_mask(logits, target, threshold=threshold, min_kept=min_kept, **chosen)
    assert actual.dtype == torch.bool and actual.shape == target.shape
    y = torch.where(target == chosen["ignore_index"], 0, target)
    p = reference.upsample(logits, case.size, case.align_corners).softmax(1).gather(1, y[:, None].long())[:, 0]
    limit = torch.where(expected, p, -1).max().clamp(min=threshold)
    close = (p - limit).abs() <= TIE
    assert not ((actual != expected) & ~close).any()
    assert case.classes == 1 or close.sum() <= max(2, 0.01 * close.numel())
    return actual


@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_reference(case: Case, backend: str, device: torch.device) -> None:
    target = make_target(case, device)
    assert_keep(make_logits(case, device), target, case, 0.05, target.numel() // 3)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_dtypes_and_layouts(layout: str, dtype: torch.dtype, backend: str, device: torch.device) -> None:
    assert_keep(make_logits(HALF, device, dtype, layout), make_target(HALF, device).to(torch.uint8), HALF, 0.3, 100)


@pytest.mark.parametrize("min_kept", [0, 1, 10**6])
def test_min_kept(min_kept: int, backend: str, device: torch.device) -> None:
    target = make_target(BASE, device)
    keep = assert_keep(make_logits(BASE, device), target, BASE, 0.0, min_kept)
    assert keep.sum() == min(min_kept, int((target != 255).sum()))


def test_threshold_of_one_keeps_every_label(backend: str, device: torch.device) -> None:
    target = make_target(BASE, device)
    keep = ops.ohem_mask(make_logits(BASE, device), target, threshold=1.0, min_kept=0)
    assert torch.equal(keep, target != 255)


def test_nothing_labeled(backend: str, device: torch.device) -> None:
    target = torch.full_like(make_target(BASE, device), 255)
    assert not ops.ohem_mask(make_logits(BASE, device), target, threshold=0.7, min_kept=50).any()


def test_opcheck(backend: str, device: torch.device) -> None:
    arguments = (make_logits(BASE, device), make_target(BASE, device), 0.3, 20, 255, True)
    torch.library.opcheck(torch.ops.u2pl_fast.ohem_mask, arguments)


def test_compiles_without_graph_breaks(backend: str, device: torch.device) -> None:
    target = make_target(BASE, device)

    def f(logits: Tensor) -> Tensor:
        keep = ops.ohem_mask(logits, target, threshold=0.3, min_kept=20)
        return ops.upsampled_cross_entropy(logits, target, pixel_weight=keep)

    logits = make_logits(BASE, device)
    assert torch.equal(torch.compile(f, fullgraph=True, backend="aot_eager")(logits), f(logits))


def test_label_out_of_range(backend: str, device: torch.device) -> None:
    target = make_target(BASE, device)
    target[0, 0, 0] = 77
    if device.type == "cpu":
        with pytest.raises(ValueError, match=r"^target: .*77"):
            ops.ohem_mask(make_logits(BASE, device), target, threshold=0.3, min_kept=1)
    else:
        assert not ops.ohem_mask(make_logits(BASE, device), target, threshold=1.0, min_kept=1)[0, 0, 0]
        with pytest.raises(ValueError, match="^target: 1 label"):
            ops.check_label_errors(device)


@pytest.mark.parametrize(
    ("change", "error", "name"),
    [
        ({"target": torch.zeros(2, 17, 25)}, TypeError, "target"),
        ({"min_kept": -1}, ValueError, "min_kept"),
        ({"ignore_index": 0}, ValueError, "ignore_index"),
    ],
    ids=["float-target", "negative-min-kept", "class-as-ignore"],
)
def test_wrong_arguments(change: dict, error: type[Exception], name: str) -> None:
    arguments = {"target": make_target(BASE), "threshold": 0.5, "min_kept": 1, **change}
    with pytest.raises(error, match=f"^{name}: "):
        ops.ohem_mask(make_logits(BASE), **arguments)
