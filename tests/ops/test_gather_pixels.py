"""Test ops.gather_pixels: exact values, and gradients with repeated pixels and −1."""

import pytest
import torch
from torch import Tensor

from tests.ops.contrast_cases import Batch, make_features, needs_extension
from tests.ops.op_cases import TOLERANCE, assert_close, generator
from u2pl_fast import ops, reference

BATCH = Batch(5, (5, 7))
LAYOUTS = ["nchw", "nhwc", "rows"]


def make_index(pixels: int, *shape: int) -> Tensor:
    """Return an index in which half of the entries select one of three pixels, and some are −1."""
    g = generator(7)
    index = torch.randint(pixels, shape, generator=g)
    index = torch.where(torch.rand(shape, generator=g) < 0.5, index % 3, index)
    return torch.where(torch.rand(shape, generator=g) < 0.2, -1, index)


def both(features: Tensor, index: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return (values, gradient, the reference's gradient in float64)."""
    own, exact = features.detach().clone().requires_grad_(), features.detach().double().requires_grad_()
    values = ops.gather_pixels(own, index)
    values.backward(grad)
    reference.gather_pixels(exact, index).backward(grad.double())
    return values, own.grad, exact.grad


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("dim", [1, 19, 32])
def test_matches_reference(dim: int, dtype: torch.dtype, layout: str, backend: str, device: torch.device) -> None:
    features = make_features(BATCH, dim, dtype, layout).to(device)
    index = make_index(BATCH.pixels, 6, 7).to(device)
    grad = torch.randn(6, 7, dim, generator=generator()).to(device, dtype)
    values, actual, expected = both(features, index, grad)
    assert torch.equal(values, reference.gather_pixels(features, index))
    assert_close(actual, expected, TOLERANCE["gradient"][dtype], "gradient")
    assert actual.dtype == dtype
    assert dim == 1 or actual.stride() == features.stride()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_pixel_and_none(layout: str, backend: str, device: torch.device) -> None:
    features = make_features(Batch(1, (1, 1), 1), 4, layout=layout).to(device)
    for index in (torch.tensor([0, -1, 0]), torch.tensor([-1, -1]), torch.zeros(0, dtype=torch.int64)):
        values, actual, expected = both(features, index.to(device), torch.ones(len(index), 4, device=device))
        assert torch.equal(values, reference.gather_pixels(features, index.to(device)))
        assert torch.equal(actual.double(), expected)


def test_rows_of_a_pixel_far_apart(backend: str, device: torch.device) -> None:
    """Use small integers, whose sums are exact, so that a missing or repeated row shows."""
    features = make_features(BATCH, 3).to(device)
    index = torch.full((1000,), -1)
    index[[0, 1, 63, 64, 500, 999]] = 5
    index[[2, 130, 131]] = 104
    index[700:740] = 6
    grad = torch.randint(-8, 8, (1000, 3), generator=generator()).float()
    _, actual, expected = both(features, index.to(device), grad.to(device))
    assert torch.equal(actual.double(), expected)


def test_shape_of_the_index(backend: str, device: torch.device) -> None:
    features = make_features(BATCH, 6).to(device)
    assert ops.gather_pixels(features, torch.tensor(3, device=device)).shape == (6,)
    assert ops.gather_pixels(features, torch.zeros(2, 0, 3, dtype=torch.int64, device=device)).shape == (2, 0, 3, 6)


def test_slices_are_read_in_place(backend: str, device: torch.device) -> None:
    whole = make_features(Batch(5, (5, 7), 4), 8).to(device)
    index = make_index(70, 9).to(device)
    assert torch.equal(ops.gather_pixels(whole[2:], index), reference.gather_pixels(whole[2:], index))
    odd = whole[:, ::2, :, 1:]
    assert torch.equal(ops.gather_pixels(odd, index), reference.gather_pixels(odd, index))


def test_bits_repeat(backend: str, device: torch.device) -> None:
    for layout in LAYOUTS:
        features = make_features(BATCH, 19, layout=layout).to(device)
        index, grad = make_index(BATCH.pixels, 300).to(device), torch.randn(300, 19, generator=generator()).to(device)
        torch.set_num_threads(1)
        first = both(features, index, grad)
        torch.set_num_threads(2)
        assert all(torch.equal(a, b) for a, b in zip(first[:2], both(features, index, grad)[:2], strict=True))


def test_gradcheck() -> None:
    features = make_features(Batch(1, (2, 3), 1), 2, torch.float64).requires_grad_()
    index = torch.tensor([[5, -1], [5, 0]])
    assert torch.autograd.gradcheck(lambda x: ops.gather_pixels(x, index), features)
    assert torch.autograd.gradgradcheck(lambda x: ops.gather_pixels(x, index), features)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck(layout: str, backend: str, device: torch.device) -> None:
    features = make_features(BATCH, 6, layout=layout).to(device).requires_grad_()
    torch.library.opcheck(torch.ops.u2pl_fast.gather_pixels, (features, make_index(BATCH.pixels, 4, 5).to(device)))


def test_compiles_without_graph_breaks(backend: str, device: torch.device) -> None:
    def f(features: Tensor, index: Tensor) -> Tensor:
        return (ops.gather_pixels(features * 2, index) ** 2).sum()

    index = make_index(BATCH.pixels, 4, 5).to(device)
    results = []
    for g in (f, torch.compile(f, fullgraph=True, backend="aot_eager")):
        features = make_features(BATCH, 6).to(device).requires_grad_()
        value = g(features, index)
        value.backward()
        results.append((value, features.grad))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize(
    ("features", "index", "error", "name"),
    [
        (torch.zeros(2, 3, 4), torch.zeros(3).long(), ValueError, "features"),
        (torch.zeros(2, 3).int(), torch.zeros(3).long(), TypeError, "features"),
        (torch.zeros(2, 3), torch.zeros(3).int(), TypeError, "index"),
    ],
)
def test_wrong_arguments(features: Tensor, index: Tensor, error: type[Exception], name: str) -> None:
    with pytest.raises(error, match=f"^{name}: "):
        ops.gather_pixels(features, index)


@needs_extension
@pytest.mark.parametrize("bad", [-2, 6])
def test_index_out_of_range_raises_on_the_cpu(bad: int) -> None:
    with ops.use_backend("cpu"), pytest.raises(ValueError, match=f"^index: {bad} "):
        ops.gather_pixels(torch.zeros(6, 3), torch.tensor([0, bad]))
