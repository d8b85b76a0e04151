"""Count the kernels that the contrastive branch launches on a GPU, since launches dominate the host's time.

The count needs no GPU: it uses tensors without data (device ``meta``), which also cannot be waited for. Triton kernels
are recorded, not launched. ``Launches`` counts PyTorch operators.
"""

from collections import Counter
from collections.abc import Callable
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode

from u2pl_fast import ops
from u2pl_fast.gates import reliability
from u2pl_fast.memory_bank import MemoryBank
from u2pl_fast.ops import _backend

pytest.importorskip("triton")
if _backend.interpreted():
    pytest.skip("nothing is noted under TRITON_INTERPRET=1", allow_module_level=True)

from benchmarks.aot.launches import record  # noqa: E402

BUDGET = 36
LAUNCHES_NONE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view"}
# CUB: a scan has two kernels; a sort of 64-bit keys has two, and one for every eight bits.
SEVERAL = {"cumsum": 2, "sort": 11}


class Launches(TorchDispatchMode):
    """Count the PyTorch operators that launch a kernel, by name, below autograd and inside this project's ops.

    An operator launches one kernel, or more if it is in ``SEVERAL``. It launches none if its schema returns views and
    writes nothing, or if it is in ``LAUNCHES_NONE``: those allocate without filling, or return views without declaring
    it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.table: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        space, name = func.namespace, func._schema.name.partition("::")[2]
        if space == "u2pl_fast":
            with self:
                return OPDEFS[f"{space}::{name}"]._init_fn(*args, **kwargs or {})
        aliases = [x.alias_info for x in func._schema.returns]
        is_view = any(a is not None and not a.is_write for a in aliases)
        if not is_view and name not in LAUNCHES_NONE:
            self.table[name] += SEVERAL.get(name, 1)
        return func(*args, **kwargs or {})


def counted(function: Callable[[], object]) -> Counter[str]:
    """Return the launches of a function by name."""

    def resolve(op: str, tensor: Tensor) -> str:
        return "triton" if _backend._has_kernel(op) else "reference"

    with mock.patch.object(_backend, "resolve", resolve), record() as launches, Launches() as operators:
        function()
    return operators.table + Counter(x.kernel.__name__ for x in launches)


def described(table: Counter[str]) -> str:
    return "\n".join(f"{count:4} {name}" for name, count in [*table.most_common(), ("in all", table.total())])


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def branch() -> Callable[[], object]:
    """Run threshold, partition, loss with a memory bank and gradient of the features, on a VOC crop."""
    images, labeled, classes, grid, crop, dim = 8, 4, 21, (129, 129), (513, 513), 256
    entropy, valid = meta(images - labeled, *crop), meta(images - labeled, *crop, dtype=torch.bool)
    label, flags = meta(images, *grid, dtype=torch.uint8), meta(images, *grid, dtype=torch.bool)
    logits, keys = meta(images, classes, *grid), meta(images, dim, *grid)
    features = meta(images, dim, *grid).requires_grad_()
    bank = MemoryBank([100] * classes, dim).to("meta")
    drawn = ((classes,), (classes, 256), (classes, 256, 50))
    draws = ops.ContrastiveDraws(*(meta(*shape, dtype=torch.int64) for shape in drawn))
    settings = {"num_labeled": labeled, "low_rank": 3, "high_rank": 20}
    gate = meta(dtype=torch.bool)

    def run() -> None:
        reliability(entropy, valid, 0.8)
        out = ops.contrastive_loss(logits, label, flags, flags, features, keys, bank, draws, gate=gate, **settings)
        torch.autograd.grad(out.loss, features)

    return run


def test_launches_are_counted() -> None:
    def run() -> None:
        x = meta(4, 6).t()[1:].reshape(20).detach()  # the reshape copies
        torch.empty_like(x).zero_()
        x.add_(x.sort().values.sum())

    assert counted(run) == {"clone": 1, "zero_": 1, "sort": 11, "sum": 1, "add_": 1}


def test_branch_stays_within_its_budget() -> None:
    run = branch()
    counted(run)  # the first run creates what later runs reuse
    table = counted(run)
    assert table.total() <= BUDGET, described(table)
