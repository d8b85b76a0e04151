"""Test ops.upsampled_cross_entropy: values and gradients of every backend against the reference."""

import pytest
import torch
from torch import Tensor

from tests.ops.contrast_cases import needs_extension
from tests.ops.op_cases import (
    BASE,
    CASES,
    HALF,
    HALVES,
    LAYOUTS,
    TOLERANCE,
    Case,
    assert_close,
    between_sure_corners,
    generator,
    ignore_index,
    make_logits,
    make_target,
)
from u2pl_fast import ops, reference
from u2pl_fast.ops import _backend, _checks

SEVERAL_BLOCKS = [
    Case(4, (9, 37), (65, 289), True),
    Case(3, (6, 21), (48, 168), False),
    Case(3, (5, 20), (13, 70), True),
]
EXTRAS = ["plain", "weight", "pixel_weight", "smoothing", "all"]


def options(case: Case, extra: str, device: torch.device) -> dict:
    g = generator(2)
    chosen = {"ignore_index": ignore_index(case), "align_corners": case.align_corners}
    if extra in ("weight", "all"):
        chosen["weight"] = (torch.rand(case.classes, generator=g) + 0.1).to(device)
    if extra in ("pixel_weight", "all"):
        chosen["pixel_weight"] = torch.rand(case.batch, *case.size, generator=g).to(device)
    if extra in ("smoothing", "all"):
        chosen["label_smoothing"] = 0.1
    return chosen


def assert_loss(logits: Tensor, target: Tensor, reduction: str = "mean", **chosen: object) -> None:
    logits = logits.requires_grad_()
    actual = ops.upsampled_cross_entropy(logits, target, reduction=reduction, **chosen)
    expected = reference.upsampled_cross_entropy(logits, target, reduction=reduction, **chosen)
    assert actual.dtype == expected.dtype and actual.shape == ()
    assert_close(actual, expected, TOLERANCE["value"])
    gradients = [torch.autograd.grad(loss * 1.5, logits)[0] for loss in (actual, expected)]
    assert gradients[0].dtype == logits.dtype and gradients[0].stride() == logits.stride()
    assert_close(*gradients, TOLERANCE["gradient"][logits.dtype], "gradient")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_reference(case: Case, backend: str, device: torch.device) -> None:
    assert_loss(make_logits(case, device), make_target(case, device), **options(case, "plain", device))


@pytest.mark.parametrize("case", [BASE, HALF], ids=str)
@pytest.mark.parametrize("extra", EXTRAS)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_weights_and_smoothing(case: Case, extra: str, reduction: str, backend: str, device: torch.device) -> None:
    assert_loss(make_logits(case, device), make_target(case, device), reduction, **options(case, extra, device))


@pytest.mark.parametrize("height", [5.0, 30.0, 300.0])
@pytest.mark.parametrize("extra", ["plain", "all"])
def test_between_confident_corners(height: float, extra: str, backend: str, device: torch.device) -> None:
    logits = between_sure_corners(height, device)
    assert_loss(logits, make_target(BASE, device), **options(BASE, extra, device))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_dtypes_and_layouts(layout: str, dtype: torch.dtype, backend: str, device: torch.device) -> None:
    target = make_target(HALF, device).to(torch.uint8)
    assert_loss(make_logits(HALF, device, dtype, layout), target, **options(HALF, "all", device))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32], ids=str)
def test_target_dtypes(dtype: torch.dtype, backend: str, device: torch.device) -> None:
    chosen = options(BASE, "plain", device)
    target = make_target(BASE, device)
    if dtype == torch.int8:
        chosen["ignore_index"] = -1
        target = torch.where(target == 255, -1, target)
    assert_loss(make_logits(BASE, device), target.to(dtype), **chosen)


def test_pixel_weight_as_a_mask(backend: str, device: torch.device) -> None:
    mask = (torch.rand(BASE.batch, *BASE.size, generator=generator()) < 0.5).to(device)
    assert_loss(make_logits(BASE, device), make_target(BASE, device), pixel_weight=mask, align_corners=True)


def test_parts(backend: str, device: torch.device) -> None:
    chosen = options(BASE, "all", device)
    logits, target = make_logits(BASE, device).requires_grad_(), make_target(BASE, device)
    num, den = ops.upsampled_cross_entropy(logits, target, reduction="parts", **chosen)
    expected = reference.upsampled_cross_entropy(logits, target, reduction="parts", **chosen)
    assert_close(num, expected[0], TOLERANCE["value"], "num")
    assert_close(den, expected[1], TOLERANCE["value"], "den")
    assert num.requires_grad and not den.requires_grad


def test_nothing_kept(backend: str, device: torch.device) -> None:
    logits = make_logits(BASE, device).requires_grad_()
    loss = ops.upsampled_cross_entropy(logits, torch.full_like(make_target(BASE, device), 255))
    (65536 * loss).backward()
    assert loss == 0 and torch.equal(logits.grad, torch.zeros_like(logits))


def test_logits_used_twice(backend: str, device: torch.device) -> None:
    logits, target = make_logits(BASE, device).requires_grad_(), make_target(BASE, device)
    other = target.flip(1)

    def twice(loss: object) -> Tensor:
        return loss(logits, target) + 0.5 * loss(logits * 2, other) + logits.square().mean()

    got, want = (torch.autograd.grad(twice(m.upsampled_cross_entropy), logits)[0] for m in (ops, reference))
    assert_close(got, want, TOLERANCE["gradient"][torch.float32])


def test_grad_scaler_in_half_precision(backend: str, device: torch.device) -> None:
    """Use a mean whose gradient is about 1e-6: without the scale it would be zero or denormal in fp16."""
    weight = torch.nn.Parameter(torch.ones((), device=device))
    features, target = make_logits(HALF, device), make_target(HALF, device)
    scaler = torch.amp.GradScaler(device.type, init_scale=2.0**12)
    gradients = []
    for module in (ops, reference):
        weight.grad = None
        logits = (features * weight).half()
        logits.retain_grad()
        with torch.autocast(device.type, dtype=torch.bfloat16):
            loss = module.upsampled_cross_entropy(logits, target)
        assert loss.dtype == torch.float32
        scaler.scale(loss).backward()
        gradients.append((weight.grad / scaler.get_scale(), logits.grad))
    assert_close(gradients[0][1], gradients[1][1], TOLERANCE["gradient"][torch.float16], "gradient of the logits")
    assert_close(gradients[0][0], gradients[1][0], 1e-2, "gradient of the weight")


def test_no_gradient_without_requires_grad(backend: str, device: torch.device) -> None:
    logits, target = make_logits(BASE, device), make_target(BASE, device)
    arguments = (target, None, None, 255, 0.0, True, False)
    num, _, grad = torch.ops.u2pl_fast.upsampled_cross_entropy(logits, *arguments)
    assert grad.numel() == 0
    with torch.no_grad():
        loss = ops.upsampled_cross_entropy(logits.requires_grad_(), target, reduction="sum", align_corners=True)
    assert not loss.requires_grad and torch.equal(loss, num)


def test_bits_repeat(backend: str, device: torch.device) -> None:
    logits, target = make_logits(HALF, device).requires_grad_(), make_target(HALF, device)
    results = []
    for threads in (1, 2, 2):
        torch.set_num_threads(threads)
        loss = ops.upsampled_cross_entropy(logits, target)
        results.append((loss, *torch.autograd.grad(loss, logits)))
    if backend != "reference":  # torch's own reductions depend on the number of threads
        assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(*results[1:], strict=True))


@needs_extension
@pytest.mark.parametrize("level", ["avx512", "avx2", "baseline"])
@pytest.mark.parametrize("spread", [1, 30, 300])
@pytest.mark.parametrize("extra", ["plain", "all"])
def test_instruction_sets_agree(extra: str, spread: int, level: str) -> None:
    """Use several blocks per row, even and uneven steps, and logits whose exponentials leave fp32's range in a cell."""
    extension, cpu = _backend.extension(), torch.device("cpu")
    if level not in extension.cpu_levels():
        pytest.skip(f"this machine does not run {level}")
    before = extension.cpu_level()
    extension.use_cpu_level(level)
    try:
        for case in (BASE, *SEVERAL_BLOCKS):
            assert_loss(spread * make_logits(case), make_target(case), **options(case, extra, cpu))
    finally:
        extension.use_cpu_level(before)


def test_second_derivative_raises(backend: str, device: torch.device) -> None:
    logits = make_logits(BASE, device).requires_grad_()
    loss = ops.upsampled_cross_entropy(logits, make_target(BASE, device))
    (grad,) = torch.autograd.grad(loss, logits, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable once"):
        grad.sum().backward()


def test_label_out_of_range(backend: str, device: torch.device) -> None:
    logits, target = make_logits(BASE, device), make_target(BASE, device)
    target[1, 3, 4] = 77
    if device.type == "cpu":
        with pytest.raises(ValueError, match=r"^target: .*77.* nor ignore_index"):
            ops.upsampled_cross_entropy(logits, target)
    else:
        ignored = torch.where(target == 77, 255, target)
        expected = ops.upsampled_cross_entropy(logits, ignored)
        assert torch.equal(ops.upsampled_cross_entropy(logits, target), expected)
        with pytest.raises(ValueError, match="^target: 1 label"):
            ops.check_label_errors(device)
    ops.check_label_errors(device)


def test_label_errors_are_counted_and_cleared() -> None:
    _checks.count_label_errors(torch.tensor([0, 3, 255, -2]), 3, 255)
    assert ops.label_errors("cpu") == 2
    with pytest.raises(ValueError, match="^target: 2 labels"):
        ops.check_label_errors("cpu")
    ops.check_label_errors("cpu")


@pytest.mark.parametrize("extra", EXTRAS)
@pytest.mark.parametrize("case", [BASE, Case(2, (4, 3), (2, 5), False, batch=1)], ids=str)
def test_gradcheck(case: Case, extra: str) -> None:
    logits = make_logits(case, dtype=torch.float64).requires_grad_()
    target, chosen = make_target(case), options(case, extra, torch.device("cpu"))
    torch.autograd.gradcheck(lambda x: ops.upsampled_cross_entropy(x, target, **chosen), logits)


@pytest.mark.parametrize("extra", ["plain", "all"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck(extra: str, layout: str, backend: str, device: torch.device) -> None:
    chosen = options(BASE, extra, device)
    arguments = (make_target(BASE, device), chosen.get("weight"), chosen.get("pixel_weight"), 255)
    arguments += (chosen.get("label_smoothing", 0.0), True)
    logits = make_logits(BASE, device, layout=layout)
    for need_grad in (False, True):
        torch.library.opcheck(
            torch.ops.u2pl_fast.upsampled_cross_entropy, (logits.requires_grad_(need_grad), *arguments, need_grad)
        )


@pytest.mark.parametrize("reduction", ["mean", "sum", "parts"])
def test_compiles_without_graph_breaks(reduction: str, backend: str, device: torch.device) -> None:
    target = make_target(BASE, device)

    def f(logits: Tensor) -> Tensor:
        loss = ops.upsampled_cross_entropy(logits * 2, target, reduction=reduction)
        return loss if reduction != "parts" else loss[0] / loss[1]

    logits = make_logits(BASE, device).requires_grad_()
    losses = [g(logits) for g in (torch.compile(f, fullgraph=True, backend="aot_eager"), f)]
    assert torch.equal(*losses)
    assert torch.equal(*(torch.autograd.grad(loss, logits)[0] for loss in losses))


@pytest.mark.parametrize(
    ("change", "error", "name"),
    [
        ({"target": torch.zeros(2, 17, 25)}, TypeError, "target"),
        ({"target": torch.zeros(3, 17, 25, dtype=torch.long)}, ValueError, "target"),
        ({"target": torch.zeros(17, 25, dtype=torch.long)}, ValueError, "target"),
        ({"weight": torch.ones(4)}, ValueError, "weight"),
        ({"weight": torch.ones(3, requires_grad=True)}, ValueError, "weight"),
        ({"pixel_weight": torch.ones(2, 17, 24)}, ValueError, "pixel_weight"),
        ({"pixel_weight": torch.ones(2, 17, 25, requires_grad=True)}, ValueError, "pixel_weight"),
        ({"ignore_index": 2}, ValueError, "ignore_index"),
        ({"label_smoothing": 1.5}, ValueError, "label_smoothing"),
        ({"reduction": "none"}, ValueError, "reduction"),
        ({"pixel_weight": torch.ones(2, 17, 25, device="meta")}, ValueError, "pixel_weight"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_wrong_arguments(change: dict, error: type[Exception], name: str) -> None:
    arguments = {"target": make_target(BASE), **change}
    with pytest.raises(error, match=f"^{name}: "):
        ops.upsampled_cross_entropy(make_logits(BASE), **arguments)
