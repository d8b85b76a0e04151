"""Run torch.compile as a baseline: the whole function in one graph, compiled within two minutes."""

import contextlib
import functools
import logging
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from u2pl_fast import reference

SECONDS = 120


class CompileFailed(Exception):
    """Say in one line why torch.compile gave no graph."""


def lazily(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``function``, compiled at its first call with new shapes. It raises ``CompileFailed`` if that fails."""
    graph: list[Callable[..., Any]] = []

    def call(*args: Any) -> Any:
        if not graph:
            graph.append(torch.compile(function, fullgraph=True, dynamic=False))
        with _unchecked_labels():
            return graph[0](*args)

    return call


@contextlib.contextmanager
def warming_up() -> Iterator[None]:
    """Wrap the first call of a compiled function: forget older graphs, limit the time, name the reason of a failure."""
    import torch._inductor.config  # takes a second; imported only if something is compiled

    torch._dynamo.reset()
    # In this process: a pool of compilers would outlive an interrupted call, and would share the CPU with the clock.
    torch._inductor.config.compile_threads = 1
    logging.disable(logging.CRITICAL)  # an interrupted compiler prints its whole program
    try:
        _start_compiler()
        with _deadline(SECONDS):
            yield
    except Exception as error:  # the compiler raises dozens of types
        if isinstance(error, TimeoutError) or "deadline" in str(error):
            raise CompileFailed(f"torch.compile took more than {SECONDS} s") from error
        message = next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
        raise CompileFailed(f"torch.compile: {type(error).__name__}: {message}"[:200]) from error
    finally:
        logging.disable(logging.NOTSET)


@functools.cache
def _start_compiler() -> None:
    """Do what only the first compilation in a process does (precompiled headers, probes), before it is timed."""
    torch.compile(lambda x: x + 1)(torch.ones(8))


@contextlib.contextmanager
def _deadline(seconds: int) -> Iterator[None]:
    """Raise TimeoutError in this thread after ``seconds``."""

    def expire(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError("deadline")

    previous = signal.signal(signal.SIGALRM, expire)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


@contextlib.contextmanager
def _unchecked_labels() -> Iterator[None]:
    """Skip the check of label values, which reads them on the CPU and so cannot be part of one graph."""
    checked = reference.kept_target
    reference.kept_target = _kept_target
    try:
        yield
    finally:
        reference.kept_target = checked


def _kept_target(target: Tensor, num_classes: int, ignore_index: int) -> tuple[Tensor, Tensor]:
    target = target.long()
    kept = (target >= 0) & (target < num_classes)
    return torch.where(kept, target, 0), kept
