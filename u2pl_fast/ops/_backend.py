"""Which implementation runs: the one place that decides.

Backends: ``reference`` (plain PyTorch, any device), ``cpu`` (the C++ extension), ``triton`` (CUDA and ROCm; on the CPU
under ``TRITON_INTERPRET=1``) and ``cuda`` (hand-written CUDA). One op has one name everywhere, so what exists is looked
up by that name: the function ``_C.<op>``, the file ``kernels/<op>.py``, the function ``_C.<op>_cuda``.
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

# A plain global on purpose: autograd runs backward passes in threads of its own, which must see the same choice.
_chosen: str | None = None


class use_backend:
    """Run every op with the backend ``name``; None gives the choice back to the device's default.

    ``use_backend("reference")`` holds from here on; ``with use_backend("reference"): ...`` for the block only. It wins
    over the environment variable ``U2PL_FAST_BACKEND``. An op without an implementation by that name keeps its default.
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
    """The module of the compiled extension, or None after one warning that says how to build it."""
    try:
        return importlib.import_module("..._C", __name__)
    except ImportError as error:
        warnings.warn(
            f"u2pl_fast._C cannot be loaded ({error}); on the CPU the slow reference implementation stands in. To have "
            f"the fast one, {BUILD_HINT}.",
            RuntimeWarning,
            stacklevel=2,
        )
        return None


@functools.cache
def has_triton() -> bool:
    """Whether triton is installed."""
    return importlib.util.find_spec("triton") is not None


@functools.cache
def _has_kernel(op: str) -> bool:
    return has_triton() and importlib.util.find_spec(f"..kernels.{op}", __package__) is not None


def kernel(op: str) -> ModuleType:
    """The module ``kernels/<op>.py``, imported when first used: importing an op must not need triton."""
    return importlib.import_module(f"..kernels.{op}", __package__)


def interpreted() -> bool:
    """Whether triton kernels run on the CPU, in triton's interpreter."""
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
        raise ValueError(f"backend 'cpu' takes CPU tensors, got one on {device}; unset U2PL_FAST_BACKEND or move it")
    if backend == "cuda" and device.type != "cuda":
        raise ValueError(f"backend 'cuda' takes CUDA tensors, got one on {device}; unset U2PL_FAST_BACKEND or move it")
    if backend == "triton" and device.type != "cuda" and not interpreted():
        raise ValueError(
            f"backend 'triton' takes CUDA tensors, got one on {device}; set TRITON_INTERPRET=1 before the start to run "
            "its kernels on the CPU, or choose the backend 'cpu' or 'reference'"
        )


@functools.cache
def names() -> list[str]:
    """The ops that have backends, which are the files of ``kernels/``; none is imported."""
    kernels = importlib.import_module("..kernels", __package__)
    return [module.name for module in pkgutil.iter_modules(kernels.__path__) if not module.name.startswith("_")]


def _forced() -> str | None:
    """What ``use_backend`` or the environment asks for."""
    forced = _chosen or os.environ.get("U2PL_FAST_BACKEND") or None
    if forced:
        _check_name(forced, "U2PL_FAST_BACKEND")
    return forced


def _choose(op: str, device: torch.device) -> str:
    """The forced backend if the op has it, else the device's default."""
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
    """Once for each op that falls back to the reference although it has something better for this kind of device."""
    if device == "cuda" and not has_triton():
        remedy = "install triton (`pip install triton`)"
    elif device == "cpu" and extension() is not None:
        remedy = f"u2pl_fast._C is of another version: {BUILD_HINT}"
    else:  # nothing is better there, or ``extension`` has said it of all ops
        return
    warnings.warn(
        f"{op}: no fast implementation for {device} tensors is installed; the slow reference implementation stands in. "
        f"To have the fast one, {remedy}.",
        RuntimeWarning,
        stacklevel=3,
    )


def resolve(op: str, tensor: Tensor) -> str:
    """The backend that runs ``op`` on ``tensor``: the forced one if the op has it, else the device's default.

    CPU: cpu, reference. CUDA and ROCm: cuda, triton, reference. Any other device, float64 and empty tensors: reference.
    """
    if tensor.dtype == torch.float64 or tensor.numel() == 0:
        return "reference"
    backend = _choose(op, tensor.device)
    if backend == "reference" and _forced() != "reference" and op in names():
        _warn_of_fallback(op, tensor.device.type)
    return backend


def info(device: torch.device | str | None = None) -> dict[str, str]:
    """Return, for each op, the backend that it would run with now on tensors of ``device``.

    What ``use_backend`` or ``U2PL_FAST_BACKEND`` chose counts. float64 and empty tensors take the reference everywhere.
    Ops that are missing here call others (``contrastive_loss``) or torch alone (``ema_update``).

    Args:
        device: None for the GPU if there is one, else the CPU.

    Raises:
        ValueError: the chosen backend does not run on that device.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return {op: _choose(op, torch.device(device)) for op in names()}


def readable(x: Tensor) -> bool:
    """Whether asking for the value makes nobody wait: where it is on the CPU."""
    return x.is_cpu
