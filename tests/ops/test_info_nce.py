"""Test ops.info_nce: values and gradients of every backend against the reference in float64."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from tests import oracle
from tests.ops.contrast_cases import Rings, draw32, make_rings, needs_extension
from tests.ops.op_cases import TOLERANCE, assert_close, generator
from u2pl_fast import ops, reference
from u2pl_fast.ops import _backend

MODES = ["per_anchor", "shared", "full"]
HALVES = [torch.bfloat16, torch.float16]
# (loss, gradient) with tensor cores, where anchors and shares are rounded to the bank's type. Observed: 9e-5 and 2.3e-3
# with bfloat16, 8e-6 and 1.7e-3 with float16. Elsewhere everything is computed in float32.
ROUNDED = {torch.bfloat16: (3e-4, 1e-2), torch.float16: (4e-5, 2e-3)}


class Inputs(NamedTuple):
    anchors: Tensor
    weight: Tensor
    positives: Tensor
    rings: Rings
    indices: Tensor | None

    def to(self, device: torch.device) -> "Inputs":
        return Inputs(*(None if x is None else x.to(device) for x in self))


def make_inputs(
    mode: str,
    classes: int = 5,
    count: int = 7,
    dim: int = 19,
    negatives: int = 11,
    pushed: int = 9,
    dtype: torch.dtype = torch.float32,
    bank_type: torch.dtype = torch.float32,
) -> Inputs:
    """Return rings of 1, 2, … slots, some partly filled and some wrapped; the second last class is inactive."""
    g = generator(classes + dim)
    rings = make_rings([1 + 5 * c % 23 for c in range(classes)], dim, bank_type, pushed)
    weight = torch.rand(classes, generator=g) / classes
    if classes > 1:
        weight[-2] = 0
    shapes = {"per_anchor": (classes, count, negatives), "shared": (classes, negatives), "full": None}
    indices = None
    if shapes[mode] is not None:
        fill = reference.ring_fill(rings.offsets, rings.pushed).view(-1, *[1] * (len(shapes[mode]) - 1))
        indices = draw32(*shapes[mode]) * fill >> 32
        assert not pushed or (indices < fill).all()
    anchors = (3 * torch.randn(classes, count, dim, generator=g)).to(dtype)
    return Inputs(anchors, weight, torch.randn(classes, dim, generator=g), rings, indices)


def both(inputs: Inputs, mode: str, temperature: float = 0.5) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (loss, gradient) of the op and of the reference in float64, on the same bank."""
    results = []
    for function, anchors in ((ops.info_nce, inputs.anchors), (reference.info_nce, inputs.anchors.double())):
        leaf = anchors.detach().clone().requires_grad_()
        rings = inputs.rings
        if function is reference.info_nce:
            rings = rings._replace(bank=rings.bank.double())
        constants = (x.to(leaf.dtype) if x.dtype == leaf.dtype else x for x in (inputs.weight, inputs.positives))
        loss = function(leaf, *constants, *rings, indices=inputs.indices, negatives=mode, temperature=temperature)
        loss.backward(torch.tensor(3.0, dtype=loss.dtype, device=loss.device))
        results += [loss.detach(), leaf.grad]
    return tuple(results)


def check(inputs: Inputs, mode: str, device: torch.device, temperature: float = 0.5) -> None:
    loss, grad, exact, exact_grad = both(inputs.to(device), mode, temperature)
    assert loss.dtype == torch.float32 and grad.dtype == inputs.anchors.dtype
    tolerance = (TOLERANCE["value"], TOLERANCE["gradient"][inputs.anchors.dtype])
    if mode != "per_anchor" and _backend.resolve("info_nce", inputs.anchors.to(device)) == "triton":
        tolerance = tuple(map(max, tolerance, ROUNDED.get(inputs.rings.bank.dtype, tolerance)))
    assert_close(loss, exact, tolerance[0], "loss")
    assert_close(grad, exact_grad, tolerance[1], "gradient")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("classes", [1, 2, 21, 64, 150, 300])
def test_matches_reference(classes: int, mode: str, backend: str, device: torch.device) -> None:
    check(make_inputs(mode, classes, count=3, dim=16), mode, device)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("count", "dim", "negatives", "pushed"),
    [(1, 1, 1, 1), (33, 5, 64, 3), (6, 48, 65, 30), (70, 64, 200, 100), (5, 130, 3, 2)],
)
def test_sizes(
    count: int, dim: int, negatives: int, pushed: int, mode: str, backend: str, device: torch.device
) -> None:
    check(make_inputs(mode, 3, count, dim, negatives, pushed), mode, device)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("bank_type", HALVES, ids=str)
def test_half_precision(
    bank_type: torch.dtype, dtype: torch.dtype, mode: str, backend: str, device: torch.device
) -> None:
    check(make_inputs(mode, dim=32, dtype=dtype, bank_type=bank_type), mode, device)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("temperature", [0.03, 0.5, 10.0])
def test_temperature(temperature: float, mode: str, backend: str, device: torch.device) -> None:
    check(make_inputs(mode), mode, device, temperature)


@pytest.mark.parametrize("mode", MODES)
def test_gradcheck(mode: str) -> None:
    inputs = make_inputs(mode, 3, 2, 4, 5, bank_type=torch.float64)
    leaf = inputs.anchors.double().requires_grad_()
    constants = (inputs.weight.double(), inputs.positives.double(), *inputs.rings)

    def loss(anchors: Tensor) -> Tensor:
        return ops.info_nce(anchors, *constants, indices=inputs.indices, negatives=mode)

    assert torch.autograd.gradcheck(loss, leaf)


@pytest.mark.parametrize("mode", MODES)
def test_matches_loops(mode: str) -> None:
    """Compare with code that is independent of the reference."""
    inputs = make_inputs(mode, 3, 4, 6, 5)
    arrays = [None if x is None else x.numpy() for x in (*inputs[:3], *inputs.rings, inputs.indices)]
    expected = oracle.info_nce(*arrays, mode, 0.5)
    loss = ops.info_nce(*inputs[:3], *inputs.rings, indices=inputs.indices, negatives=mode)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_full_equals_per_anchor_with_all_slots(backend: str, device: torch.device) -> None:
    inputs = make_inputs("full", 4, 6, 24, pushed=12)
    fill = reference.ring_fill(inputs.rings.offsets, inputs.rings.pushed)
    for c, keys in enumerate(fill.tolist()):
        weight = torch.zeros(4)
        weight[c] = 1.0
        slots = torch.arange(keys).expand(4, 6, keys)
        chosen = inputs._replace(weight=weight).to(device)
        named = chosen._replace(indices=slots.to(device))
        loss, grad, *_ = both(chosen, "full")
        named_loss, named_grad, *_ = both(named, "per_anchor")
        assert_close(loss, named_loss, TOLERANCE["value"], "loss")
        assert_close(grad, named_grad, 1e-5, "gradient")


@pytest.mark.parametrize("mode", ["per_anchor", "shared"])
@pytest.mark.parametrize("negatives", [5, 65])
def test_draws_select_slots(negatives: int, mode: str, backend: str, device: torch.device) -> None:
    inputs = make_inputs(mode, negatives=negatives, pushed=9).to(device)
    draws = draw32(*inputs.indices.shape, seed=1).to(device)
    draws[..., 0], draws[..., 1] = 0, 2**32 - 1
    loss, grad, *_ = both(inputs._replace(indices=reference.ring_slots(draws, *inputs.rings[1:])), mode)
    leaf = inputs.anchors.clone().requires_grad_()
    drawn = ops.info_nce(leaf, *inputs[1:3], *inputs.rings, draws=draws, negatives=mode)
    drawn.backward(torch.tensor(3.0, device=device))
    assert torch.equal(drawn, loss) and torch.equal(leaf.grad, grad)


@pytest.mark.parametrize("mode", MODES)
def test_half_banks_stay_near_fp32(mode: str, backend: str, device: torch.device) -> None:
    """Check the bound: rounding a key to bfloat16 moves a score by less than 2⁻⁸ / τ, to float16 by 2⁻¹¹ / τ."""
    exact = make_inputs(mode, dim=64, negatives=50, pushed=30).to(device)
    loss, grad, *_ = both(exact, mode)
    for dtype, unit in ((torch.bfloat16, 2**-8), (torch.float16, 2**-11)):
        rounded = exact._replace(rings=exact.rings._replace(bank=exact.rings.bank.to(dtype)))
        rounded_loss, rounded_grad, *_ = both(rounded, mode)
        assert (rounded_loss - loss).abs() <= unit / 0.5 * exact.weight.sum()
        assert_close(rounded_grad, grad, 4 * unit, "gradient")


@pytest.mark.parametrize("mode", MODES)
def test_no_active_class(mode: str, backend: str, device: torch.device) -> None:
    inputs = make_inputs(mode, pushed=0)
    inputs = inputs._replace(weight=torch.zeros(5), positives=torch.zeros(5, 19)).to(device)
    loss, grad, *_ = both(inputs, mode)
    assert loss == 0 and not grad.any()


@pytest.mark.parametrize("mode", MODES)
def test_inactive_classes_are_not_read(mode: str, backend: str, device: torch.device) -> None:
    """Check that NaN in a class of weight 0, and past every fill, changes nothing."""
    if backend == "reference":
        pytest.skip("it starts from 0 · Σ anchors, where NaN stays NaN")
    inputs = make_inputs(mode, pushed=3)
    loss, grad, *_ = both(inputs.to(device), mode)
    start, end = inputs.rings.offsets[-3:-1].tolist()
    bank = torch.where(inputs.rings.bank == -7, torch.nan, inputs.rings.bank)
    bank[start:end] = torch.nan
    anchors, positives = inputs.anchors.clone(), inputs.positives.clone()
    anchors[-2], positives[-2] = torch.nan, torch.nan
    spoiled = Inputs(anchors, inputs.weight, positives, inputs.rings._replace(bank=bank), inputs.indices).to(device)
    leaf = spoiled.anchors.requires_grad_()
    value = ops.info_nce(leaf, *spoiled[1:3], *spoiled.rings, indices=spoiled.indices, negatives=mode)
    value.backward(torch.tensor(3.0, device=device))
    assert torch.equal(value.detach(), loss) and torch.equal(leaf.grad[:-2], grad[:-2])
    assert not leaf.grad[-2].any()


def test_zero_anchor_and_zero_center(backend: str, device: torch.device) -> None:
    inputs = make_inputs("per_anchor")
    inputs.anchors[0, 0] = 0
    inputs.positives[1] = 0
    loss, grad, exact, exact_grad = both(inputs.to(device), "per_anchor")
    assert_close(loss, exact, TOLERANCE["value"])
    assert_close(grad[0, 0], exact_grad[0, 0], 1e-4)  # as large as 1 / 1e-12
    grad[0, 0] = exact_grad[0, 0] = 0
    assert_close(grad, exact_grad, 1e-5)


def test_no_gradient_without_requires_grad(backend: str, device: torch.device) -> None:
    inputs = make_inputs("shared").to(device)
    arguments = dict(indices=inputs.indices, negatives="shared")
    assert not ops.info_nce(*inputs[:3], *inputs.rings, **arguments).requires_grad
    leaf = inputs.anchors.clone().requires_grad_()
    with torch.no_grad():
        assert not ops.info_nce(leaf, *inputs[1:3], *inputs.rings, **arguments).requires_grad


def test_second_derivative_raises(backend: str, device: torch.device) -> None:
    inputs = make_inputs("shared").to(device)
    leaf = inputs.anchors.requires_grad_()
    loss = ops.info_nce(leaf, *inputs[1:3], *inputs.rings, indices=inputs.indices, negatives="shared")
    (grad,) = torch.autograd.grad(loss, leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable once"):
        grad.sum().backward()


@pytest.mark.parametrize("mode", MODES)
def test_bits_repeat(mode: str, backend: str, device: torch.device) -> None:
    inputs = make_inputs(mode, 4, 70, 40, 90, pushed=60).to(device)
    first = both(inputs, mode)
    torch.set_num_threads(2)
    second = both(inputs, mode)
    if backend != "reference":
        assert all(torch.equal(a, b) for a, b in zip(first[:2], second[:2], strict=True))


@needs_extension
@pytest.mark.parametrize("level", ["avx512", "avx2", "baseline"])
@pytest.mark.parametrize("mode", MODES)
def test_instruction_sets_agree(mode: str, level: str) -> None:
    extension = _backend.extension()
    if level not in extension.cpu_levels():
        pytest.skip(f"this machine does not run {level}")
    before = extension.cpu_level()
    extension.use_cpu_level(level)
    try:
        for dim in (5, 64):
            check(make_inputs(mode, dim=dim, count=9, negatives=70, pushed=20), mode, torch.device("cpu"))
    finally:
        extension.use_cpu_level(before)


@pytest.mark.parametrize("mode", MODES)
def test_opcheck(mode: str, backend: str, device: torch.device) -> None:
    inputs = make_inputs(mode).to(device)
    arguments = (inputs.anchors.requires_grad_(), *inputs[1:3], *inputs.rings, inputs.indices, mode, 0.5, True, False)
    torch.library.opcheck(torch.ops.u2pl_fast.info_nce, arguments)


def test_compiles_without_graph_breaks(backend: str, device: torch.device) -> None:
    def f(inputs: Inputs) -> Tensor:
        return ops.info_nce(2 * inputs.anchors, *inputs[1:3], *inputs.rings, indices=inputs.indices)

    results = []
    for g in (f, torch.compile(f, fullgraph=True, backend="aot_eager")):
        inputs = make_inputs("per_anchor").to(device)
        inputs.anchors.requires_grad_()
        loss = g(inputs)
        loss.backward()
        results.append((loss, inputs.anchors.grad))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize(
    ("changed", "error", "name"),
    [
        ({"anchors": torch.zeros(5, 19)}, ValueError, "anchors"),
        ({"anchors": torch.zeros(5, 7, 19).int()}, TypeError, "anchors"),
        ({"weight": torch.zeros(4)}, ValueError, "weight"),
        ({"weight": torch.zeros(5).long()}, TypeError, "weight"),
        ({"weight": torch.zeros(5, requires_grad=True)}, ValueError, "weight"),
        ({"positives": torch.zeros(5, 18)}, ValueError, "positives"),
        ({"bank": torch.zeros(9, 18)}, ValueError, "bank"),
        ({"pushed": torch.zeros(4).long(), "offsets": torch.zeros(5).long()}, ValueError, "pushed"),
        ({"negatives": "none"}, ValueError, "negatives"),
        ({"negatives": "full"}, ValueError, "indices"),
        ({"indices": None}, ValueError, "indices"),
        ({"indices": torch.zeros(5, 11).long()}, ValueError, "indices"),
        ({"indices": torch.zeros(5, 7, 11)}, TypeError, "indices"),
        ({"draws": torch.zeros(5, 7, 11).long()}, ValueError, "indices"),
        ({"indices": None, "draws": torch.zeros(5, 11).long()}, ValueError, "draws"),
        ({"indices": None, "draws": torch.zeros(5, 7, 11)}, TypeError, "draws"),
        ({"temperature": 0.0}, ValueError, "temperature"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_wrong_arguments(changed: dict, error: type[Exception], name: str) -> None:
    inputs = make_inputs("per_anchor")
    named = {"anchors": inputs.anchors, "weight": inputs.weight, "positives": inputs.positives}
    with pytest.raises(error, match=f"^{name}: "):
        ops.info_nce(**(named | inputs.rings._asdict() | {"indices": inputs.indices} | changed))


@needs_extension
@pytest.mark.parametrize("slot", [-1, 9])
def test_slot_past_the_fill_raises_on_the_cpu(slot: int) -> None:
    inputs = make_inputs("per_anchor")
    inputs.indices[3, 2, 1] = slot  # of weight 0: not read
    ops.info_nce(*inputs[:3], *inputs.rings, indices=inputs.indices)
    inputs.indices[2, 2, 1] = slot
    with ops.use_backend("cpu"), pytest.raises(ValueError, match=f"^indices: slot {slot} of class 2, which holds 9"):
        ops.info_nce(*inputs[:3], *inputs.rings, indices=inputs.indices)
