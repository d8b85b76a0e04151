"""Choose the implementation that runs each op.

Backends: ``reference`` (plain PyTorch, any device), ``cpu`` (the C++ extension), ``triton`` (CUDA and ROCm; on the CPU
with ``TRITON_INTERPRET=1``) and ``cuda`` (hand-written CUDA). An op has the same name in each, so implementations are
found by name: the function ``_C.<op>``, the file ``kernels/<op>.py``, the function ``_C.<op>_cuda``.
"""

import functools
import importlib
import importlib.util
import os
import pkgutil
import warnings
from types import ModuleType, TracebackType
from typing import Any

import torch
from torch import Tensor

BACKENDS = ("reference", "cpu", "triton", "cuda")
BUILD_HINT = "build it with `pip install -e . --no-build-isolation` or `python setup.py build_ext --inplace`"

# A plain global, not a thread-local: autograd runs backward passes in other threads, which must see the same choice.
_chosen: str | None = None


class use_backend:
    """Run every op with the backend ``name``.

    Call ``use_backend("reference")`` to switch from here on, or use it as a context manager to switch within a block.
    It overrides the environment variable ``U2PL_FAST_BACKEND``. An op that lacks this backend keeps its default.

    Args:
        name: ``reference``, ``cpu``, ``triton`` or ``cuda``; None restores the default of each device.

    Raises:
        ValueError: the name is unknown.

    Examples:
        >>> logits = torch.randn(1, 5, 8, 8)
        >>> with ops.use_backend("reference"):
        ...     stats = ops.pixel_stats(logits, (32, 32))
    """

    def __init__(self, name: str | None) -> None:
        global _chosen
        if name is not None:
            _check_name(name, "name")
        self._previous = _chosen
        _chosen = name

    def __enter__(self) -> "use_backend":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        global _chosen
        _chosen = self._previous


def _check_name(name: str, argument: str) -> None:
    if name not in BACKENDS:
        raise ValueError(f"{argument}: unknown backend {name!r}; choose one of {', '.join(BACKENDS)}")


@functools.cache
def extension() -> Any:
    """Return the compiled extension, or None after one warning that tells how to build it."""
    try:
        return importlib.import_module("..._C", __name__)
    except ImportError as error:
        warnings.warn(
            f"u2pl_fast._C cannot be loaded ({error}), so ops on the CPU use the slow reference implementation. For "
            f"the fast one, {BUILD_HINT}.",
            RuntimeWarning,
            stacklevel=2,
        )
        return None


@functools.cache
def has_triton() -> bool:
    """Return whether triton is installed."""
    return importlib.util.find_spec("triton") is not None


@functools.cache
def _has_kernel(op: str) -> bool:
    return has_triton() and importlib.util.find_spec(f"..kernels.{op}", __package__) is not None


def kernel(op: str) -> ModuleType:
    """Import ``kernels/<op>.py`` at first use, so that importing an op does not require triton."""
    return importlib.import_module(f"..kernels.{op}", __package__)


def interpreted() -> bool:
    """Return whether triton kernels run on the CPU, in triton's interpreter."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def _exists(op: str, backend: str) -> bool:
    match backend:
        case "reference":
            return True
        case "triton":
            return _has_kernel(op)
        case _:
            module = extension()
            return module is not None and hasattr(module, op if backend == "cpu" else f"{op}_cuda")


def _check_device(backend: str, device: torch.device) -> None:
    if backend == "cpu" and device.type != "cpu":
        raise ValueError(f"backend 'cpu' takes CPU tensors, got one on {device}; move it, or unset U2PL_FAST_BACKEND")
    if backend == "cuda" and device.type != "cuda":
        raise ValueError(f"backend 'cuda' takes CUDA tensors, got one on {device}; move it, or unset U2PL_FAST_BACKEND")
    if backend == "triton" and device.type != "cuda" and not interpreted():
        raise ValueError(
            f"backend 'triton' takes CUDA tensors, got one on {device}; set TRITON_INTERPRET=1 before Python "
            "starts to run its kernels on the CPU, or choose the backend 'cpu' or 'reference'"
        )


@functools.cache
def names() -> list[str]:
    """Return the ops that have backends, which are the files of ``kernels/``, without importing them."""
    kernels = importlib.import_module("..kernels", __package__)
    return [module.name for module in pkgutil.iter_modules(kernels.__path__) if not module.name.startswith("_")]


def _forced() -> str | None:
    """Return the backend that ``use_backend`` or the environment asks for."""
    forced = _chosen or os.environ.get("U2PL_FAST_BACKEND") or None
    if forced:
        _check_name(forced, "U2PL_FAST_BACKEND")
    return forced


def _choose(op: str, device: torch.device) -> str:
    """Return the forced backend if the op has it, else the device's default."""
    forced = _forced()
    if forced:
        if _exists(op, forced):
            _check_device(forced, device)
            return forced
        if forced in ("cpu", "cuda") and device.type != forced:
            _check_device(forced, device)
    candidates = {"cpu": ("cpu",), "cuda": ("cuda", "triton")}.get(device.type, ())
    return next((backend for backend in candidates if _exists(op, backend)), "reference")


@functools.cache
def _warn_of_fallback(op: str, device: str) -> None:
    """Warn once per op that uses the reference where a faster backend exists for this device."""
    if device == "cuda" and not has_triton():
        remedy = "install triton (`pip install triton`)"
    elif device == "cpu" and extension() is not None:
        remedy = f"rebuild u2pl_fast._C, which is of another version: {BUILD_HINT}"
    else:  # no faster backend exists there, or ``extension`` has already warned
        return
    warnings.warn(
        f"{op}: no fast implementation for {device} tensors is installed, so the slow reference implementation runs. "
        f"For the fast one, {remedy}.",
        RuntimeWarning,
        stacklevel=3,
    )


def resolve(op: str, tensor: Tensor) -> str:
    """Return the backend that runs ``op`` on ``tensor``: the forced one if the op has it, else the device's default.

    The order is cpu, reference on the CPU, and cuda, triton, reference on CUDA and ROCm. Other devices, float64 and
    empty tensors use the reference.
    """
    if tensor.dtype == torch.float64 or tensor.numel() == 0:
        return "reference"
    backend = _choose(op, tensor.device)
    if backend == "reference" and _forced() != "reference" and op in names():
        _warn_of_fallback(op, tensor.device.type)
    return backend


def info(device: torch.device | str | None = None) -> dict[str, str]:
    """Return the backend that each op would use now on tensors of ``device``.

    The result reflects ``use_backend`` and ``U2PL_FAST_BACKEND``. It does not list ops that call other ops
    (``contrastive_loss``) or torch only (``ema_update``). float64 and empty tensors always use the reference.

    Args:
        device: None is the GPU if there is one, else the CPU.

    Returns:
        Backends by the name of the op.

    Raises:
        ValueError: the chosen backend does not run on that device.

    Examples:
        >>> ops.info("cpu")["pixel_stats"] in ("cpu", "reference")
        True
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return {op: _choose(op, torch.device(device)) for op in names()}


def readable(x: Tensor) -> bool:
    """Return whether reading the value waits for no device, which is so on the CPU."""
    return x.is_cpu
