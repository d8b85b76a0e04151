"""Share fixtures among all tests: one thread, memory filled with NaN, the choice of backend, small data and a model."""

import multiprocessing.process
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.backends import INTERPRETED, device_of, used
from u2pl_fast.ops import _backend


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--aot-full", action="store_true", help="compile every specialization of every kernel")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu: needs a GPU; `pytest -m gpu` takes these alone")
    config.addinivalue_line("markers", "slow: trains or starts a process, or takes long; `make quick` leaves these out")


def pytest_sessionstart() -> None:
    tested = os.environ.get("U2PL_FAST_TESTED")
    if tested and not Path(_backend.__file__).is_relative_to(Path(tested).resolve()):
        pytest.exit(f"U2PL_FAST_TESTED: the tests would run {Path(_backend.__file__).parents[1]}, not {tested}", 2)


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


@pytest.fixture(autouse=True)
def _quick_unless_marked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail a test that trains or starts a process without the mark slow, so that `make quick` stays quick."""
    if any(request.node.get_closest_marker(name) for name in ("slow", "gpu")):
        return

    def refuse(*_, **__) -> None:
        pytest.fail("it trains or starts a process: mark it with @pytest.mark.slow")

    monkeypatch.setattr(subprocess.Popen, "__init__", refuse)
    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", refuse)
    learner = sys.modules.get("u2pl_fast.training.learner")
    if learner is not None:
        monkeypatch.setattr(learner.Learner, "train_step", refuse)


@pytest.fixture
def filled_memory() -> Iterator[None]:
    """Fill every torch.empty with NaN or the largest integer, so that an output left unwritten fails the test."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=["triton"] if INTERPRETED else ["reference", "cpu", "triton"])
def backend(request: pytest.FixtureRequest, filled_memory: None) -> Iterator[str]:
    """Run the test with each backend; in the interpreter with triton only."""
    with used(request.param):
        yield request.param


@pytest.fixture
def device(backend: str) -> torch.device:
    """Return the device of the backend's tensors."""
    return device_of(backend)


@pytest.fixture(autouse=True)
def _no_backend_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    if "U2PL_FAST_BACKEND" in os.environ:
        monkeypatch.delenv("U2PL_FAST_BACKEND")


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder of four validation images of two sizes. Tests only read it."""
    from tests.inference.cases import make_data

    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def trained(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a checkpoint for those images, with random weights. Tests only read it."""
    from tests.inference.cases import make_checkpoint

    return make_checkpoint(tmp_path_factory.mktemp("run") / "best.pt", root)
