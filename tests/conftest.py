"""What all tests share: one thread, outputs that show where nothing was written, and the choice of backend."""

import os
from collections.abc import Iterator

import pytest
import torch

from u2pl_fast import ops
from u2pl_fast.ops import _backend

INTERPRETED = _backend.interpreted()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--aot-full", action="store_true", help="compile every specialisation of every kernel")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu: needs a GPU; `pytest -m gpu` takes these alone")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))
        chosen = item.callspec.params if hasattr(item, "callspec") else {}
        if chosen.get("backend") in ("triton", "cuda"):  # the fixture says where it cannot run
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def filled_memory() -> Iterator[None]:
    """Every torch.empty holds NaN, or the largest integer, so that an output left unwritten cannot pass by luck."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


def missing(backend: str) -> str | None:
    """Why a backend cannot run here."""
    if backend == "cpu" and _backend.extension() is None:
        return f"u2pl_fast._C is not built; {_backend.BUILD_HINT}"
    if backend == "triton" and not _backend.has_triton():
        return "triton is not installed"
    if backend == "triton" and not INTERPRETED and not torch.cuda.is_available():
        return "triton needs a GPU, or TRITON_INTERPRET=1 pytest tests/interpret"
    return None


@pytest.fixture(params=["triton"] if INTERPRETED else ["reference", "cpu", "triton"])
def backend(request: pytest.FixtureRequest, filled_memory: None) -> Iterator[str]:
    """Each backend in turn; in the interpreter only triton."""
    reason = missing(request.param)
    if reason:
        pytest.skip(reason)
    with ops.use_backend(request.param):
        yield request.param


@pytest.fixture
def device(backend: str) -> torch.device:
    """Where the backend's tensors live."""
    return torch.device("cuda" if backend == "triton" and not INTERPRETED else "cpu")


@pytest.fixture(autouse=True)
def _no_backend_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    if "U2PL_FAST_BACKEND" in os.environ:
        monkeypatch.delenv("U2PL_FAST_BACKEND")
