"""Choose among the backends that run here, and their devices. This file needs only torch, like the ops."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from u2pl_fast import ops
from u2pl_fast.ops import _backend

INTERPRETED = _backend.interpreted()


def missing(backend: str) -> str | None:
    """Return the reason why a backend cannot run here."""
    if backend == "cpu" and _backend.extension() is None:
        return f"u2pl_fast._C is not built; {_backend.BUILD_HINT}"
    if backend == "triton" and not _backend.has_triton():
        return "triton is not installed"
    if backend == "triton" and not INTERPRETED and not torch.cuda.is_available():
        return "triton needs a GPU, or TRITON_INTERPRET=1 pytest tests/interpret"
    if backend == "cuda" and not (torch.cuda.is_available() and hasattr(_backend.extension(), "ring_push_cuda")):
        return "needs a GPU and an extension built with CUDA"
    return None


@contextmanager
def used(backend: str) -> Iterator[None]:
    """Choose a backend, or skip the test if it cannot run."""
    reason = missing(backend)
    if reason:
        pytest.skip(reason)
    with ops.use_backend(backend):
        yield


def device_of(backend: str) -> torch.device:
    return torch.device("cuda" if backend == "cuda" or (backend == "triton" and not INTERPRETED) else "cpu")
