"""Test ops.masked_quantile: every backend equals NumPy's linear method exactly."""

import math
import os

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing

from tests.ops.op_cases import generator
from u2pl_fast import ops

SIZES = [1, 2, 3, 100, 5000]
SHARES = [0.0, 0.2, 0.5, 0.8, 0.999, 1.0]


def numbers(kind: str, n: int) -> torch.Tensor:
    g = generator(n)
    match kind:
        case "normal":
            return torch.randn(n, generator=g)
        case "ties":
            return torch.randint(-2, 3, (n,), generator=g).float()
        case "tiny":
            return torch.randn(n, generator=g) * 1e-39  # denormal, both signs
        case "one-exponent":
            return 1 + torch.rand(n, generator=g) * 1e-6  # equal except for the last digits
        case "infinite":
            return torch.randn(n, generator=g).masked_fill(torch.rand(n, generator=g) < 0.3, -math.inf)
    raise AssertionError(kind)


def expected(x: torch.Tensor, mask: torch.Tensor, q: float) -> float:
    """Compute NumPy's linear method, with positions and blending in float64."""
    v = np.sort(x[mask].double().numpy())
    if v.size == 0 or np.isnan(v).any():
        return math.nan
    position = q * (v.size - 1)
    low = math.floor(position)
    a, b = v[low], v[min(low + 1, v.size - 1)]
    return float(np.float32(a if a == b else a + (position - low) * (b - a)))


@pytest.mark.parametrize("kind", ["normal", "ties", "tiny", "one-exponent", "infinite"])
@pytest.mark.parametrize("n", SIZES)
def test_equals_numpy(kind: str, n: int, backend: str, device: torch.device) -> None:
    x = numbers(kind, n)
    mask = torch.rand(n, generator=generator()) < 0.7
    mask[0] = True
    for q in SHARES:
        actual = ops.masked_quantile(x.to(device), mask.to(device), q)
        want = expected(x, mask, q)
        assert actual.dtype == torch.float32 and actual.shape == () and actual.device.type == device.type
        ulp = np.spacing(np.float32(abs(want))) if math.isfinite(want) else 0
        assert float(actual) == want or abs(float(actual) - want) <= ulp, f"q = {q}: {float(actual)!r}, not {want!r}"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_dtypes(dtype: torch.dtype, backend: str, device: torch.device) -> None:
    x = numbers("normal", 1000).to(dtype)
    mask = x > -1
    actual = ops.masked_quantile(x.to(device), mask.to(device), 0.8)
    assert actual.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert float(actual) == pytest.approx(expected(x, mask, 0.8), rel=1e-6)


def test_shape_and_tensor_q(backend: str, device: torch.device) -> None:
    x = numbers("normal", 600).view(2, 15, 20).transpose(1, 2).to(device)
    mask = x.abs() < 1
    q = torch.tensor(0.8, device=device)
    assert torch.equal(ops.masked_quantile(x, mask, q), ops.masked_quantile(x, mask, float(q)))


def test_nothing_selected(backend: str, device: torch.device) -> None:
    x = torch.ones(10, device=device)
    assert ops.masked_quantile(x, torch.zeros_like(x, dtype=torch.bool), 0.5).isnan()
    assert ops.masked_quantile(x[:0], x[:0] > 0, 0.5).isnan()


@pytest.mark.parametrize("q", [0.0, 0.5])
def test_nan(q: float, backend: str, device: torch.device) -> None:
    x = numbers("normal", 50).to(device)
    x[7], x[8] = math.nan, -math.nan
    mask = torch.ones_like(x, dtype=torch.bool)
    assert ops.masked_quantile(x, mask, q).isnan()
    assert ops.masked_quantile(x, ~x.isnan(), q).isfinite()


def test_more_than_2_to_24_elements(backend: str, device: torch.device) -> None:
    """Use more elements than float32 positions distinguish; torch.quantile refuses such a tensor."""
    if backend == "triton" and device.type == "cpu":
        pytest.skip("takes minutes in the interpreter")
    n = 2**24 + 3
    x = torch.arange(n, dtype=torch.int32).flip(0).float().sub_(2**23)
    mask = torch.ones(n, dtype=torch.bool)
    position = (n - 2) / (n - 1)
    assert float(ops.masked_quantile(x.to(device), mask.to(device), position)) == float(x[1])


def test_opcheck(backend: str, device: torch.device) -> None:
    x = numbers("normal", 100).to(device)
    q = torch.full((), 0.3, dtype=torch.float64, device=device)
    torch.library.opcheck(torch.ops.u2pl_fast.masked_quantile, (x, x > 0, q))


def test_compiles_without_graph_breaks(backend: str, device: torch.device) -> None:
    x = numbers("normal", 300).to(device)

    def f(x: torch.Tensor) -> torch.Tensor:
        return ops.masked_quantile(x * 2, x > 0, 0.8) + 1

    assert torch.equal(torch.compile(f, fullgraph=True, backend="aot_eager")(x), f(x))


def _share(rank: int, store: str, results: str, backend: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    x = numbers("normal", 700)
    mask = torch.rand(700, generator=generator()) < 0.6
    mine = slice(0, 500) if rank == 0 else slice(500, 700)
    with ops.use_backend(backend):
        value = ops.masked_quantile(x[mine], mask[mine], 0.83, group=dist.group.WORLD)
        empty = ops.masked_quantile(x[mine], torch.zeros_like(mask[mine]), 0.83, group=dist.group.WORLD)
    torch.save((value, empty), f"{results}{rank}")
    dist.destroy_process_group()


@pytest.mark.slow
def test_over_two_processes(backend: str, device: torch.device, tmp_path: os.PathLike) -> None:
    if device.type != "cpu":
        pytest.skip("two processes need two GPUs")
    torch.multiprocessing.spawn(_share, (str(tmp_path / "store"), str(tmp_path / "result"), backend), nprocs=2)
    x = numbers("normal", 700)
    whole = ops.masked_quantile(x, torch.rand(700, generator=generator()) < 0.6, 0.83)
    for rank in range(2):
        value, empty = torch.load(tmp_path / f"result{rank}")
        assert torch.equal(value, whole) and empty.isnan()


@pytest.mark.parametrize(
    ("x", "mask", "q", "error", "name"),
    [
        (torch.zeros(3, dtype=torch.long), torch.ones(3, dtype=torch.bool), 0.5, TypeError, "x"),
        (torch.zeros(3), torch.ones(3), 0.5, TypeError, "mask"),
        (torch.zeros(3), torch.ones(4, dtype=torch.bool), 0.5, ValueError, "mask"),
        (torch.zeros(3), torch.ones(3, dtype=torch.bool), 1.5, ValueError, "q"),
        (torch.zeros(3), torch.ones(3, dtype=torch.bool), torch.zeros(1), ValueError, "q"),
    ],
    ids=["integer", "float-mask", "shape", "range", "q-shape"],
)
def test_wrong_arguments(
    x: torch.Tensor, mask: torch.Tensor, q: float | torch.Tensor, error: type[Exception], name: str
) -> None:
    with pytest.raises(error, match=f"^{name}: "):
        ops.masked_quantile(x, mask, q)
