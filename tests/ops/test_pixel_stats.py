"""Test ops.pixel_stats: every backend against the reference."""

import pytest
import torch
from torch import Tensor

from tests.ops.op_cases import (
    BASE,
    CASES,
    HALF,
    HALVES,
    LAYOUTS,
    TIE,
    TOLERANCE,
    Case,
    assert_close,
    between_sure_corners,
    make_logits,
)
from u2pl_fast import ops, reference


def assert_stats(actual: reference.PixelStats, logits: Tensor, case: Case) -> None:
    expected = reference.pixel_stats(logits, case.size, align_corners=case.align_corners)
    assert_close(actual.confidence, expected.confidence, TOLERANCE["value"], "confidence")
    assert_close(actual.entropy, expected.entropy, TOLERANCE["value"], "entropy")
    assert actual.label.dtype == expected.label.dtype
    full = reference.upsample(logits, case.size, case.align_corners)
    chosen = full.gather(1, actual.label[:, None].long())[:, 0]
    assert (full.amax(1) - chosen).max() <= TIE
    clear = full.topk(min(2, case.classes), dim=1).values
    clear = clear[:, 0] - clear[:, -1] > TIE if case.classes > 1 else torch.ones_like(chosen, dtype=torch.bool)
    assert torch.equal(actual.label[clear], expected.label[clear])
    assert clear.float().mean() > 0.99


@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_reference(case: Case, backend: str, device: torch.device) -> None:
    logits = make_logits(case, device)
    assert_stats(ops.pixel_stats(logits, case.size, align_corners=case.align_corners), logits, case)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_dtypes_and_layouts(layout: str, dtype: torch.dtype, backend: str, device: torch.device) -> None:
    logits = make_logits(HALF, device, dtype, layout)
    assert_stats(ops.pixel_stats(logits, HALF.size), logits, HALF)


def test_strided_logits(backend: str, device: torch.device) -> None:
    logits = make_logits(Case(6, (5, 14), (17, 25), True), device)[:, ::2, :, ::2]
    assert_stats(ops.pixel_stats(logits, BASE.size, align_corners=True), logits, BASE)


def test_ties_go_to_the_lower_class(backend: str, device: torch.device) -> None:
    stats = ops.pixel_stats(torch.full((1, 21, 3, 4), 1.7, device=device), (12, 16))
    assert not stats.label.any()
    assert_close(stats.confidence, torch.full_like(stats.confidence, 1 / 21), TOLERANCE["value"])
    assert_close(stats.entropy, torch.full_like(stats.entropy, 21).log(), TOLERANCE["value"])


def test_extreme_logits(backend: str, device: torch.device) -> None:
    logits = make_logits(BASE, device) * 1e4
    stats = ops.pixel_stats(logits, BASE.size, align_corners=True)
    assert stats.entropy.isfinite().all() and (stats.entropy >= 0).all()
    assert ((stats.confidence > 0) & (stats.confidence <= 1)).all()


@pytest.mark.parametrize("height", [5.0, 30.0, 300.0])
def test_between_confident_corners(height: float, backend: str, device: torch.device) -> None:
    logits = between_sure_corners(height, device)
    assert_stats(ops.pixel_stats(logits, BASE.size, align_corners=True), logits, BASE)


def test_nan_stays_nan(backend: str, device: torch.device) -> None:
    logits = make_logits(BASE, device)
    logits[0, 1, 2, 3] = torch.nan
    stats = ops.pixel_stats(logits, BASE.size, align_corners=True)
    assert stats.confidence[0, 8, 12].isnan() and stats.entropy[0, 8, 12].isnan()
    assert stats.entropy[1].isfinite().all()


def test_bits_repeat(backend: str, device: torch.device) -> None:
    logits = make_logits(HALF, device)
    first = ops.pixel_stats(logits, HALF.size)
    torch.set_num_threads(2)
    second = ops.pixel_stats(logits, HALF.size)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_no_gradient(backend: str, device: torch.device) -> None:
    stats = ops.pixel_stats(make_logits(BASE, device).requires_grad_(), BASE.size)
    assert not any(x.requires_grad for x in stats)


@pytest.mark.parametrize("case", [BASE, Case(300, (2, 3), (5, 9), True)], ids=str)
def test_opcheck(case: Case, backend: str, device: torch.device) -> None:
    arguments = (make_logits(case, device, layout="nhwc"), *case.size, case.align_corners)
    torch.library.opcheck(torch.ops.u2pl_fast.pixel_stats, arguments)


def test_compiles_without_graph_breaks(backend: str, device: torch.device) -> None:
    def f(logits: Tensor) -> Tensor:
        stats = ops.pixel_stats(logits * 2, BASE.size, align_corners=True)
        return stats.entropy + stats.confidence

    logits = make_logits(BASE, device)
    assert torch.equal(torch.compile(f, fullgraph=True, backend="aot_eager")(logits), f(logits))


@pytest.mark.parametrize(
    ("logits", "size", "error", "name"),
    [
        (torch.zeros(3, 4, 5), (8, 8), ValueError, "logits"),
        (torch.zeros(1, 0, 4, 5), (8, 8), ValueError, "logits"),
        (torch.zeros(1, 2, 4, 5, dtype=torch.int32), (8, 8), TypeError, "logits"),
        (torch.zeros(1, 2, 4, 5), (8, 0), ValueError, "size"),
        (torch.zeros(1, 2, 4, 5), (8, 8, 8), ValueError, "size"),
    ],
    ids=["three-dims", "no-class", "integer", "no-column", "three-sizes"],
)
def test_wrong_arguments(logits: Tensor, size: tuple, error: type[Exception], name: str) -> None:
    with pytest.raises(error, match=f"^{name}: "):
        ops.pixel_stats(logits, size)
