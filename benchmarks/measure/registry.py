"""List what can be measured: ops, their inputs, and the implementations of each.

An op is one file in ``benchmarks/measure/ops/`` with an ``Op`` called ``OP``. Most are drop-in ops: one ``forward``,
written against the signatures that ``u2pl_fast.reference`` and ``u2pl_fast.ops`` share, gives three implementations. A
file may add others, if all return the same tensors for the same inputs.
"""

import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from u2pl_fast import ops, reference
from u2pl_fast.ops import _backend

from . import compiled
from .inputs import Inputs
from .roofline import Counts, expected
from .workloads import Workload

FORWARD, BOTH, STEP = PASSES = ("forward", "forward+backward", "step")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LAYOUTS = ("contiguous", "channels_last")
BANKS = ("literal", "capped")
DEFAULT_DTYPES = ("float32", "bfloat16")  # measured by default

Arguments = dict[str, Any]
Outputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Setting:
    """Name one case to measure: the key of a record without ``impl``."""

    op: str
    workload: Workload
    device: str
    dtype: str
    layout: str
    bank: str | None
    passes: str

    @property
    def gradient(self) -> bool:
        return self.passes == BOTH

    def inputs(self) -> Inputs:
        return Inputs(self.workload, self.device, DTYPES[self.dtype], self.layout, self.bank)

    def __str__(self) -> str:
        parts = (self.op, self.workload.name, self.device, self.dtype, self.layout, self.bank, self.passes)
        return " ".join(part for part in parts if part)


def no_mark(part: str) -> None:
    """Do nothing at the end of a part, if parts are not timed."""


@dataclass(frozen=True)
class Implementation:
    """Describe one implementation of an op.

    ``forward(arguments, mark)`` returns tensors. The backward pass starts from the first of them. ``leaf`` is what the
    loss is differentiated by: the name of an argument, or a function that selects outputs. ``arguments`` makes what one
    implementation owns, including its bank. ``collect`` turns (arguments, outputs, gradients) into the tensors to
    compare, outside of the timed region; none if no other implementation does the same. ``missing`` returns why it
    cannot run, or None. ``phases`` are profiler scopes that it opens, timed as its parts. ``no_peak`` says why its peak
    memory cannot be measured, or is None.
    """

    arguments: Callable[[Inputs], Arguments]
    forward: Callable[..., Outputs]
    leaf: str | Callable[[Outputs], Sequence[Tensor]] | None = None
    collect: Callable[[Arguments, Outputs, Sequence[Tensor]], Outputs] = lambda _, outputs, grads: (*outputs, *grads)
    missing: Callable[[Setting], str | None] = lambda _: None
    phases: tuple[str, ...] = ()
    no_peak: str | None = None


class Call:
    """Call an implementation with its own arguments: the forward pass, and the backward pass if the setting has one."""

    def __init__(self, op: "Op", setting: Setting, impl: str, inputs: Inputs) -> None:
        self.implementation, self.gradient = op.implementations[impl], setting.gradient
        self.learns = setting.passes != FORWARD
        self.arguments = self.implementation.arguments(inputs)
        leaf = self.implementation.leaf
        if self.gradient and isinstance(leaf, str):
            self.arguments[leaf] = self.arguments[leaf].detach().requires_grad_()

    def __call__(self, mark: Callable[[str], None] = no_mark) -> tuple[Outputs, Sequence[Tensor]]:
        """Return (outputs, gradients)."""
        with torch.set_grad_enabled(self.learns):
            outputs = self.implementation.forward(self.arguments, mark)
        if not self.gradient:
            return outputs, ()
        leaf = self.implementation.leaf
        wanted = [self.arguments[leaf]] if isinstance(leaf, str) else leaf(outputs)
        first = outputs[0]
        # Without a loss to differentiate, the output is its own incoming gradient.
        return outputs, torch.autograd.grad(first, wanted, first.detach() if first.dim() else None)

    def compared(self, outputs: Outputs, grads: Sequence[Tensor]) -> Outputs:
        """Return the tensors that every implementation must agree on."""
        return self.implementation.collect(self.arguments, outputs, grads)


@dataclass(frozen=True)
class Op:
    """List the implementations of an op in the order they run. The others must agree with the first."""

    name: str
    implementations: Mapping[str, Implementation]
    passes: tuple[str, ...] = (FORWARD,)
    dtypes: tuple[str, ...] = tuple(DTYPES)
    layouts: tuple[str, ...] = LAYOUTS
    banks: tuple[str | None, ...] = (None,)
    counts: Callable[[Inputs], Counts] = field(default=lambda x: expected(x.workload, x.bank == "capped"))


def drop_in(
    name: str,
    arguments: Callable[[Inputs], Arguments],
    forward: Callable[..., Outputs],
    *,
    leaf: str | Callable[[Outputs], Sequence[Tensor]] | None = None,
    uses: Sequence[str] = (),
    plain: Callable[[Arguments], Outputs] | None = None,
) -> dict[str, Implementation]:
    """Return ``forward(api, arguments, mark)`` as ``eager`` and ``compile`` (the reference) and ``fused`` (the op).

    ``plain`` is the code that users write without the op, as its page shows it before the op. It can be faster than the
    reference, which also covers weights, invalid labels and group sums.
    """

    def eager(args: Arguments, mark: Callable[[str], None] = no_mark) -> Outputs:
        return forward(reference, args, mark)

    def fused(args: Arguments, mark: Callable[[str], None] = no_mark) -> Outputs:
        return forward(ops, args, mark)

    def missing(setting: Setting) -> str | None:
        needed = tuple(uses) or (name,)
        absent = [op for op in needed if not hasattr(ops, op)]
        if absent:
            return f"u2pl_fast.ops has no {', '.join(absent)}"
        probe = torch.empty(1, device=setting.device)
        if all(_backend.resolve(op, probe) == "reference" for op in needed):
            return f"no fused backend on this {setting.device}: the reference would be measured twice"
        return None

    def written(args: Arguments, mark: Callable[[str], None] = no_mark) -> Outputs:
        return plain(args)

    return ({"plain": Implementation(arguments, written, leaf)} if plain else {}) | {
        "eager": Implementation(arguments, eager, leaf),
        "compile": Implementation(arguments, compiled.lazily(eager), leaf),
        "fused": Implementation(arguments, fused, leaf, missing=missing),
    }


@functools.cache
def load(name: str) -> Op:
    """Return one op. Raise ImportError if its file needs a missing package: ``ops.TRAININGS`` need more than torch."""
    return importlib.import_module(f".ops.{name}", __package__).OP
