"""Test the EMA teacher: schedule, buffers, separate storage, gate."""

import pytest
import torch
from torch import nn

from u2pl_fast.teacher import EMATeacher


def student() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))


def shift(module: nn.Module, by: float) -> None:
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor.add_(int(by) if not tensor.is_floating_point() else by)


def test_teacher_is_a_frozen_copy_with_separate_storage():
    net = student()
    teacher = EMATeacher(net)
    assert not teacher.module.training and not any(p.requires_grad for p in teacher.module.parameters())
    own = {tensor.data_ptr() for tensor in teacher.module.state_dict().values()}
    assert own.isdisjoint(tensor.data_ptr() for tensor in net.state_dict().values())


def test_first_update_copies_then_the_momentum_rises_to_its_bound():
    net = student()
    teacher = EMATeacher(net, momentum=0.7)
    expected = None
    for k in range(6):
        shift(net, 1.0)
        new = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        momentum = min(1 - 1 / (k + 1), 0.7)
        expected = new if expected is None else {
            name: momentum * expected[name] + (1 - momentum) * new[name] if new[name].is_floating_point() else new[name]
            for name in new
        }  # fmt: skip
        teacher.update(net)
        for name, tensor in teacher.module.state_dict().items():
            torch.testing.assert_close(tensor, expected[name], msg=f"{name} after update {k}")


def test_closed_gate_keeps_the_teacher_from_nan():
    net = student()
    teacher = EMATeacher(net)
    teacher.update(net)
    before = {name: tensor.clone() for name, tensor in teacher.module.state_dict().items()}
    for parameter in net.parameters():
        parameter.data.fill_(float("nan"))
    teacher.update(net, gate=torch.tensor(False))
    for name, tensor in teacher.module.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert teacher.updates == 2


def test_restart_and_state_dict():
    net = student()
    teacher = EMATeacher(net)
    for _ in range(3):
        shift(net, 1.0)
        teacher.update(net)
    other = EMATeacher(student())
    other.load_state_dict(teacher.state_dict())
    assert other.updates == 3
    for name, tensor in other.module.state_dict().items():
        assert torch.equal(tensor, teacher.module.state_dict()[name])
    other.restart(net)
    assert other.updates == 0
    for name, tensor in other.module.state_dict().items():
        assert torch.equal(tensor, net.state_dict()[name])


def test_momentum_out_of_range_raises():
    with pytest.raises(ValueError, match="momentum"):
        EMATeacher(student(), momentum=1.5)
