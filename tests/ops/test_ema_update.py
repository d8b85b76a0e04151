"""Test the average against its formula, the gate as on a GPU, and the number of operations per step."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from u2pl_fast import reference
from u2pl_fast.config import TrainConfig, resolve
from u2pl_fast.models import build_model
from u2pl_fast.ops import _backend, ema_update
from u2pl_fast.ops._packing import Packing
from u2pl_fast.ops.ema_update import _selected
from u2pl_fast.teacher import EMATeacher
from u2pl_fast.training.optim import BufferGuard

NAN = float("nan")


def tensors(seed: int, device: str = "cpu") -> list[torch.Tensor]:
    """Return tensors of all kinds: several element sizes, memory formats, gaps, no elements."""
    torch.manual_seed(seed)
    made = [
        torch.randn(3),
        torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last),
        torch.randn(4, 3, 1, 1).to(memory_format=torch.channels_last),
        torch.randn(2, 6)[:, ::2],
        torch.tensor(seed + 2**40),
        torch.randn(5, dtype=torch.float64),
        torch.randn(3).bfloat16(),
        torch.randn(3, 2).half().T,
        torch.rand(3) > 0.5,
        torch.randn(0, 2),
        torch.randn(()),
    ]
    return [x.to(device) for x in made]


@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.5, 0.99, 1.0])
def test_values_match_reference(momentum):
    got, want = tensors(0), tensors(0)
    ema_update(got, tensors(1), momentum)
    reference.ema_update(want, tensors(1), momentum)
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("device", ["cpu", "cpu as a GPU", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("momentum", [0.0, 0.99])
def test_open_gate_is_exact_and_closed_gate_changes_nothing(monkeypatch, device, momentum):
    if device == "cpu as a GPU":
        device = "cpu"
        monkeypatch.setattr(_backend, "readable", lambda gate: False)
    plain, gated, closed = (tensors(0, device) for _ in range(3))
    ema_update(plain, tensors(1, device), momentum)
    ema_update(gated, tensors(1, device), momentum, gate=torch.tensor(True, device=device))
    broken = [torch.full_like(x, NAN if x.is_floating_point() else 1) for x in closed]
    ema_update(closed, broken, momentum, gate=torch.tensor(False, device=device))
    for one, other in zip(gated + closed, plain + tensors(0, device), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("is_open", [True, False])
def test_selection_copies_exact_bits(is_open):
    new, old = tensors(1), tensors(0)
    for x in (new if not is_open else old)[:3]:
        x.fill_(NAN)
    chosen = _selected(torch.tensor(is_open), new, old)
    for one, other, like in zip(chosen, new if is_open else old, old, strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other)
        if like.numel() and like.is_contiguous():
            assert one.stride() == like.stride()  # otherwise a GPU processes the tensors one by one


def test_packing_accepts_another_memory_format():
    like = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 4, 5)
    (got,) = Packing([like]).unpack(Packing([like]).pack([x]))
    assert torch.equal(got, x) and got.stride() == like.stride()


def test_parameters_may_require_gradients():
    teacher, student = nn.Linear(2, 2), nn.Linear(2, 2)
    ema_update(list(teacher.parameters()), list(student.parameters()), 0.0)
    assert torch.equal(_selected(torch.tensor(True), [student.weight], [teacher.weight])[0], student.weight)


@pytest.mark.parametrize("other", [torch.zeros(2, 1), torch.zeros(2, dtype=torch.int32)])
def test_different_tensors_raise(other):
    with pytest.raises(ValueError, match=r"student: expected torch.float32 \(2,\) at index 1"):
        ema_update([torch.zeros(3), torch.zeros(2)], [torch.zeros(3), other], 0.5)


class Launches(TorchDispatchMode):
    """List the operations that are not views, and therefore need work on a device.

    A multi-tensor operation counts once if it can take its fast path (a few launches on a GPU, for any number of
    tensors), and so does a ``cat``. Otherwise it processes its tensors one by one and counts once for each.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view:
            self.found += [str(func)] * self._number(func, args)
        return func(*args, **(kwargs or {}))

    def _number(self, func, args) -> int:
        if "_foreach_" not in str(func):
            return 1
        lists = [arg for arg in args if isinstance(arg, list)]
        one_dtype = len({x.dtype for tensors in lists for x in tensors}) == 1
        alike = all(len({x.stride() for x in one}) == 1 for one in zip(*lists, strict=True))
        return 1 if one_dtype and alike else len(lists[0])


def update(student: nn.Module) -> list[str]:
    """Return the operations of a step's guard and average, on a device whose values Python cannot read."""
    student = student.to("meta")
    guard, teacher = BufferGuard(student), EMATeacher(student)
    ok = torch.ones((), dtype=torch.bool, device="meta")
    with Launches() as launches:
        guard.save()
        guard.restore_unless(ok)
        teacher.update(student, gate=ok)
    return launches.found


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("encoder", ["resnet101", "mobilenetv3_small_050"])
def test_ten_operations_a_step_update_a_network_of_many_tensors(encoder, channels_last):
    student = build_model(resolve(TrainConfig(encoder=encoder, encoder_weights="none")), 21)
    if channels_last:
        student = student.to(memory_format=torch.channels_last)
    assert len(update(student)) <= 10


def test_a_network_without_buffers_or_parameters_is_updated_too():
    assert len(update(nn.Linear(2, 2))) <= 10
    assert update(nn.Identity()) == []
